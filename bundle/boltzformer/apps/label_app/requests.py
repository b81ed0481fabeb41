"""What a viewer asks of the app, checked; and what the app can suggest. Nothing here needs MONAI Label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer.bundle_folder import bundle_folder
from boltzformer.data.prompts import Prompt, check_prompt, make_prompts, parse_prompts, read_prompt_list
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.recipe import lasting_objects, read_recipe
from boltzformer.volumes.modality import normal_modality

FREE_TEXT, KNOWN = "prompt", "known_prompt"
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
DTYPES = ("uint8", "uint16", "int16", "float32")
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class InferRequest:
    """A request for masks.

    Attributes:
        prompts: what to segment, at least one.
        modality: "CT", "MR" or another; empty where the request does not say.
        body_part: for the intensity window; may be empty.
        extension: of the file to answer with; empty leaves it to the app.
        dtype: of its voxels.
        compress: whether it is compressed, where the format leaves the choice.
    """

    prompts: tuple[Prompt, ...]
    modality: str = ""
    body_part: str = ""
    extension: str = ""
    dtype: str = "uint8"
    compress: bool = False


def suggested_prompts(weights: Path) -> list[Prompt]:
    """Prompts to offer: the objects of the weights' last training, in their first wording; else the bundle's list.

    Args:
        weights: a checkpoint.

    Returns:
        at least one prompt.

    Raises:
        InputError: the checkpoint is missing or its recipe is damaged.
    """
    objects = lasting_objects(read_recipe(weights) or {})
    known = {name: wordings[0] for name, wordings in objects.items() if wordings}
    if not known:
        return read_prompt_list(bundle_folder() / "configs" / "prompts.json")
    # two objects may share a wording; a prompt is asked once
    return make_prompts([(text, None) for text in dict.fromkeys(known.values())], str(weights))


def read_request(request: Mapping[str, Any], suggested: Sequence[Prompt]) -> InferRequest:
    """Check a request for masks; its texts are data and are never evaluated.

    Args:
        request: JSON from the viewer. `prompt`: text, `;` between several, or a list of sentences. `known_prompt`: one
            of the suggestions, taken where `prompt` is empty. `modality`, `body_part`: of the image.
            `result_extension`, `result_dtype`, `result_compress`: of the file to answer with.
        suggested: what is segmented where neither asks for anything.

    Returns:
        the request.

    Raises:
        InputError: an entry that cannot be used; the message names it and the cure.
    """
    known = request.get(KNOWN)
    prompts = parse_prompts(request.get(FREE_TEXT), FREE_TEXT)
    if not prompts and isinstance(known, str):  # viewers give the list of suggestions back where nothing was chosen
        prompts = parse_prompts(known, KNOWN)
    part = request.get("body_part") or ""
    if not isinstance(part, str) or len(part) > 100:
        raise InputError(f"body_part: expected a short text such as lung or brain, found {part!r}.")
    extension = request.get("result_extension") or ""
    if extension and extension not in EXTENSIONS:
        raise InputError(f"result_extension: {extension!r} is not known; use one of {', '.join(EXTENSIONS)}.")
    dtype = request.get("result_dtype") or "uint8"
    if dtype not in DTYPES:
        raise InputError(f"result_dtype: {dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    return InferRequest(
        prompts=tuple(prompts or suggested),
        modality=normal_modality(request.get("modality")),
        body_part=part,
        extension=extension,
        dtype=dtype,
        compress=bool(request.get("result_compress", False)),
    )


def label_names(label_map: np.ndarray, prompts: Sequence[Prompt]) -> dict[str, int]:
    """Names of the values that a label map holds, by value.

    Slicer names the segments that it finds in the map by their order, so a prompt that was not found is not listed.

    Args:
        label_map: (X, Y, Z), value i + 1 for prompt i.
        prompts: what was asked for.

    Returns:
        the prompt's sentence -> value.
    """
    values = set(np.unique(label_map).tolist())
    return {prompt.text: value for value, prompt in enumerate(prompts, start=1) if value in values}


@dataclass(frozen=True)
class TrainRequest:
    """A request for training.

    Attributes:
        max_epochs: length.
        val_split: share of the labelled images for validation.
        learning_rate: None takes the config's.
        modality: of all images; empty takes the one that the network was trained with.
        body_part: of all images; may be empty.
    """

    max_epochs: int = 50
    val_split: float = 0.2
    learning_rate: float | None = None
    modality: str = ""
    body_part: str = ""


def read_train_request(request: Mapping[str, Any]) -> TrainRequest:
    """Check a request for training.

    Args:
        request: JSON from the viewer.

    Raises:
        InputError: an entry that cannot be used; the message names it and the cure.
    """
    part = request.get("body_part") or ""
    if not isinstance(part, str):
        raise InputError(f"body_part: expected text, found {part!r}.")
    rate = request.get("learning_rate")
    return TrainRequest(
        max_epochs=int(_number(request.get("max_epochs", 50), "max_epochs", 1, MOST_EPOCHS, whole=True)),
        val_split=_number(request.get("val_split", 0.2), "val_split", 0.01, 0.9),
        learning_rate=_number(rate, "learning_rate", 1e-8, 1.0) if rate not in (None, "", 0) else None,
        modality=normal_modality(request.get("modality")),
        body_part=part,
    )


def _number(value: Any, name: str, lowest: float, highest: float, whole: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not lowest <= number <= highest or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{name}: expected {kind} from {lowest:g} to {highest:g}, found {value!r}.")
    return number


def training_items(pairs: Sequence[Mapping[str, Any]], modality: str = "", body_part: str = "") -> list[dict[str, Any]]:
    """Items of a datalist from labelled images; a segment's name is the prompt that it is trained with.

    Args:
        pairs: `image`, `label` (paths) and `segments`, the viewer's list of `{"name": ..., "idx": value}`.
        modality: of all images; empty where unknown.
        body_part: of all images; may be empty.

    Returns:
        items as `boltzformer.data.cases.load_cases` reads them.

    Raises:
        InputError: fewer than two labelled images, or a label without named segments.
    """
    if len(pairs) < 2:
        raise InputError(
            f"{len(pairs)} image(s) have a final label; label at least two, one to train with and one to validate."
        )
    items = []
    for pair in pairs:
        names = _segment_names(pair.get("segments"), str(pair["label"]))
        about = {"modality": modality, "body_part": body_part}
        items.append(
            {
                "image": str(pair["image"]),
                "label": str(pair["label"]),
                "labels": {str(value): name for value, name in names.items()},
                "prompts": {str(value): [name] for value, name in names.items()},
                **{key: value for key, value in about.items() if value},
            }
        )
    return items


def _segment_names(segments: Any, where: str) -> dict[int, str]:
    if not isinstance(segments, list) or not segments:
        raise InputError(f"{where}: its segments have no names; save the label from the viewer once more.")
    names: dict[int, str] = {}
    for entry in segments:
        value = entry.get("idx") if isinstance(entry, Mapping) else None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value in names:
            raise InputError(f"{where}: expected segments with `name` and a value `idx` of their own, found {entry!r}.")
        names[value] = check_prompt(entry.get("name"), f"{where}, segment {value}")
    return names


def release_notes() -> tuple[str, str]:
    """Version and description, as the bundle's metadata states them."""
    content = read_json(bundle_folder() / "configs" / "metadata.json", "metadata")
    return str(content["version"]), str(content["description"])
