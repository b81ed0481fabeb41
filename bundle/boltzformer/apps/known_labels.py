"""Label maps of what a network already knows, so that it keeps that while it learns something new.

A fine-tuned network forgets what the new labels do not show: nothing holds it there. Its own masks of the known objects
in the same images, made before, are taught beside the new labels. That is learning without forgetting (Li and Hoiem,
ECCV 2016) with masks in place of soft scores: they can be looked at, and mended, before they are taught.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from boltzformer.apps.batch import FAILED, CaseResult, Request, run_batch
from boltzformer.apps.release import NAME, bundle_version, weights_checksum
from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.cases import load_cases
from boltzformer.data.derived import about_image
from boltzformer.data.prompts import make_prompts
from boltzformer.data.wordings import object_key
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.output_files import write_bytes
from boltzformer.recipe import Recipe, recipe_for
from boltzformer.settings import nearest, usable_device
from boltzformer.volumes.names import case_name
from boltzformer.volumes.segmented import Algorithm

DATALIST = "known.json"
_SECTIONS = ("training", "validation")


def label_known(
    dataset: Path,
    output: Path,
    weights: Path,
    objects: Sequence[str] = (),
    validation_share: float = 0.2,
    seed: int = 0,
    say: Callable[[str], None] = print,
    device: str | None = None,
) -> Path:
    """Segment what a network knows in a dataset's images, and list the masks as labels.

    Started again it goes on with the images that are left. An object that was not found in an image is not labelled
    there, as one that nobody annotated.

    Args:
        dataset: folder in Decathlon layout, or a datalist JSON, with labels of something else.
        output: folder of the label maps and of `known.json`, a datalist of the same images in the same lists.
        weights: the checkpoint that training will start from.
        objects: names from its recipe; by default those it was measured for on whole volumes (`agreement`, `coarse`),
            and all of the last training where the recipe tells no such thing. What the dataset labels itself is left
            out.
        validation_share: as training will set apart where the dataset has no validation list.
        seed: of that split.
        say: gets a line for each image.
        device: where to compute; CUDA where there is one by default.

    Returns:
        the datalist.

    Raises:
        InputError: the dataset or the weights cannot be used, an object is not known, none is left, an image cannot be
            segmented, or none of the objects was found in the training images.
    """
    place = None if device is None else usable_device(device)
    cases = {name: _images(name, load_cases(dataset, name, validation_share, seed)) for name in _SECTIONS}
    both = [*cases["training"], *cases["validation"]]
    recipe = recipe_for(weights, bundle_folder())
    names = kept_objects(recipe, objects, {name for case in both for name in case["own"]}, weights)
    prompts = make_prompts([(recipe.objects[name][0], None) for name in names], str(weights))
    request = Request(tuple(prompts), ("nifti",), Algorithm(NAME, bundle_version(), weights_checksum(weights)))
    done = run_batch(
        both, request, lambda: _segmenter(weights, place), output, report=lambda result: say(_line(result))
    )
    failed = [result for result in done if result.status == FAILED]
    if failed:
        listed = "".join(f"\n  {result.case}: {result.reason}" for result in failed)
        raise InputError(f"{dataset}: {len(failed)} of {len(done)} images could not be segmented:{listed}")
    found = {result.case: any(finding.found for finding in result.findings) for result in done}
    if not any(found[case["case"]] for case in cases["training"]):
        raise InputError(
            f"{dataset}: {weights} finds none of {', '.join(names)} in its training images, so that nothing of them "
            "can be kept: train without."
        )
    content: dict[str, Any] = {
        "name": f"{both[0]['dataset']}, known objects",
        "labels": {str(value): name for value, name in enumerate(names, start=1)},
    }
    content["training"] = [_item(case) for case in cases["training"] if found[case["case"]]]
    content["validation"] = [_item(case) for case in cases["validation"]]  # all: an empty list would ask for a split
    return write_bytes(output / DATALIST, (json.dumps(content, indent=4) + "\n").encode())


def kept_objects(recipe: Recipe, wanted: Sequence[str], taught: set[str], weights: Path) -> list[str]:
    """Which known objects to label.

    Args:
        recipe: of the weights.
        wanted: by the user; may be empty.
        taught: what the dataset labels itself, by `object_key`.
        weights: to name in errors.

    Returns:
        at least one name from the recipe.

    Raises:
        InputError: see `label_known`.
    """
    measured = {name for part in ("agreement", "coarse") for name in recipe.content.get(part, {}).get("objects", ())}
    by_key = {object_key(name): name for name in recipe.objects}
    for name in wanted:
        if object_key(name) not in by_key:
            raise InputError(f"{weights}: does not know {name!r}; {nearest(name, recipe.objects)}")
    chosen = [by_key[object_key(name)] for name in wanted] or [name for name in recipe.objects if name in measured]
    left = [name for name in dict.fromkeys(chosen or recipe.lasting_objects) if object_key(name) not in taught]
    if not left:
        known = "states no objects" if not recipe.objects else "knows nothing that the dataset does not label itself"
        raise InputError(f"{weights}: {known}, so that there is nothing to keep: train without.")
    return left


def _images(section: str, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each image once, as `run_batch` takes it; `own` are all objects that are labelled in it."""
    images: dict[str, dict[str, Any]] = {}
    for case in cases:
        # numbered: images of one name may lie in folders of their own
        new = {**case, "case": f"{section}_{len(images):03d}_{case_name(case['image'])}", "own": set()}
        images.setdefault(case["image"], new)["own"].update(object_key(name) for name in case["objects"].values())
    return list(images.values())


def _item(case: dict[str, Any]) -> dict[str, Any]:
    return {"image": case["image"], "label": f"{case['case']}.nii.gz", **about_image(case)}


def _segmenter(weights: Path, device: torch.device | None) -> Segmenter:
    return Segmenter.from_bundle(bundle_folder(), weights, device=device, progress=False, keep_logits=False)


def _line(result: CaseResult) -> str:
    if result.status == FAILED:
        return f"{result.case}: failed, {result.reason}"
    names = ", ".join(finding.prompt for finding in result.findings if finding.found)
    return f"{result.case}: {result.status}, found {names or 'nothing'}"
