"""A checkpoint's recipe: what its network was trained with, as data that is checked and never run.

Evaluation, inference and fine-tuning ask `recipe_for` for the recipe of their checkpoint, and `build_network` for its
network. A setting that a config gives beside it must agree.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema

from boltzformer.bundle_folder import bundle_folder, found_in_bundle
from boltzformer.data.canvas import check_pixel_sizes
from boltzformer.data.windows import IntensityWindow
from boltzformer.data.wordings import WordingBook, check_entries
from boltzformer.errors import InputError
from boltzformer.volumes.modality import normal_modality
from boltzformer.weights import read_checkpoint, read_record, save_atomically, state_digest

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
DEFAULTS: dict[str, Any] = {"window": "auto", "axis": 2, "num_adjacent": 0, "pixel_size_mm": None, "body_view": False}
"""What holds for a setting that neither the checkpoint nor the config gives."""


@dataclass(frozen=True)
class Recipe:
    """What a run works with.

    Attributes:
        content: the recipe as it stands in the checkpoint, with the settings of this run in `input`; checked against
            `recipe.schema.json`. Without `network` where there is no checkpoint, or one that carries no recipe.
        checkpoint: the file it came from, or None.
        override: settings that may differ from the checkpoint's, such as "window" or "network_def#image_size".
        bundle_root: where `models/` and `configs/` lie.
    """

    content: Mapping[str, Any]
    checkpoint: Path | None = None
    override: tuple[str, ...] = ()
    bundle_root: Path = field(default_factory=bundle_folder)

    @property
    def network(self) -> dict[str, Any] | None:
        """Definition of the network, or None where the checkpoint does not say."""
        return self.content.get("network")

    @property
    def window(self) -> str | list[float]:
        """Intensity window, as `IntensityWindow` takes it."""
        return self.content["input"]["window"]

    @property
    def axis(self) -> int:
        """Of the slices, in RAS orientation."""
        return self.content["input"]["axis"]

    @property
    def num_adjacent(self) -> int:
        """Neighbouring slices on either side."""
        return self.content["input"]["num_adjacent"]

    @property
    def pixel_size_mm(self) -> list[float] | None:
        """Smallest and largest in-plane size of the network's pixels that training covered, in mm; None: any."""
        stated = self.content["input"].get("pixel_size_mm")
        return None if stated is None else list(check_pixel_sizes(stated))

    @property
    def body_view(self) -> bool:
        """Whether each slice is seen through the box of its body, see `boltzformer.data.canvas`."""
        return bool(self.content["input"].get("body_view", False))

    @property
    def resolution_mm(self) -> float | None:
        """In-plane size of the training's pixels, in mm; None where it is not known."""
        return self.content.get("trained_on", {}).get("pixel_mm")

    @property
    def sha256(self) -> str | None:
        """Of the checkpoint's content, as the file states it."""
        return self.content.get("sha256")

    @property
    def objects(self) -> dict[str, list[str]]:
        """Every object that the network was trained on, with its wordings."""
        return self.content.get("trained_on", {}).get("objects", {})

    @property
    def earlier_only(self) -> list[str]:
        """Objects of an earlier training that the last one had no example of: they may be forgotten."""
        return self.content.get("trained_on", {}).get("earlier_only", [])

    @property
    def lasting_objects(self) -> dict[str, list[str]]:
        """The objects of the last training, with their wordings."""
        return lasting_objects(self.content)

    @property
    def modalities(self) -> list[str]:
        """Modalities of the training cases, such as ["CT"]; empty where unknown."""
        return self.content.get("trained_on", {}).get("modalities", [])

    @property
    def only_modality(self) -> str:
        """The modality of all training cases; empty where there were several, or none is known."""
        return self.modalities[0] if len(self.modalities) == 1 else ""

    def threshold(self, name: str) -> float | None:
        """An optional number that validation chose.

        Args:
            name: "existence", "existence_temperature", "calibration" or "far_prompt".

        Returns:
            the number; None where the checkpoint has none.
        """
        return self.content.get("thresholds", {}).get(name)


def recipe_for(
    checkpoint: str | os.PathLike[str] | None,
    bundle_root: str | os.PathLike[str] = ".",
    override: Sequence[str] = (),
    **given: Any,
) -> Recipe:
    """The settings of a run: the checkpoint's, where the config gives no other.

    Args:
        checkpoint: a checkpoint file (see also `found_in_bundle`); None for a network that starts anew.
        bundle_root: the bundle's folder.
        override: settings that may differ from the checkpoint's.
        given: settings of the config: `window`, `axis`, `num_adjacent`, `pixel_size_mm`, `body_view`, `modality`; None
            or an empty text is not given.

    Returns:
        the recipe, with every setting filled in.

    Raises:
        InputError: the file is missing, its recipe is damaged, or a given setting conflicts with it and is not in
            `override`.
    """
    listed = (override,) if isinstance(override, str) else tuple(override)
    override = tuple(name.replace("::", "#") for name in listed)  # as MONAI's parser rewrites a # in any text
    given = {name: value for name, value in given.items() if value is not None and value != ""}
    modality = given.pop("modality", "")
    given = {name: _settled(name, value) for name, value in given.items()}
    root = bundle_at(bundle_root)
    checkpoint = None if checkpoint is None else found_in_bundle(checkpoint)
    content = {} if checkpoint is None else read_recipe(checkpoint)
    if content is None:  # a checkpoint without a recipe
        assert checkpoint is not None
        logger.warning("%s carries no recipe: the settings of the config hold (network, window, axis ...)", checkpoint)
        content = {"sha256": state_digest(read_checkpoint(checkpoint))}
    stated = content.get("input", {})
    if checkpoint is not None:
        for name, value in given.items():
            if _differs(stated.get(name), value):
                check_override(name, value, stated[name], checkpoint, override)
        known = content.get("trained_on", {}).get("modalities", [])
        if modality and known and normal_modality(modality) not in known:
            check_override("modality", modality, " or ".join(known), checkpoint, override)
    settings = {**DEFAULTS, **stated, **given}
    if stated:
        logger.info("recipe of %s: %s", checkpoint, ", ".join(f"{name} {value}" for name, value in settings.items()))
    return Recipe({**content, "input": settings}, Path(checkpoint) if checkpoint else None, override, root)


def check_override(
    name: str, here: Any, there: Any, checkpoint: str | os.PathLike[str], override: Sequence[str]
) -> None:
    """Refuse a setting that differs from the checkpoint's, unless it was asked for by name.

    Args:
        name: of the setting, as the config spells it.
        here: the config's value.
        there: the checkpoint's value.
        checkpoint: the file.
        override: names that may differ; "network_def" stands for all below it.

    Raises:
        InputError: names the setting, both values and the cure.
    """
    if name in override or name.split("#")[0] in override:
        logger.warning("%s is %r, though %s was trained with %r", name, here, checkpoint, there)
        return
    raise InputError(
        f"{name} is {here!r} here, but {checkpoint} was trained with {there!r}: leave it out, or, if it shall differ, "
        f"ask for it twice with --override_recipe \"['{name}']\"."
    )


def check_same_recipe(own: Mapping[str, Any], checkpoint: str | os.PathLike[str], override: Sequence[str]) -> None:
    """Refuse to take a run up again with other settings of the input than it was begun with; tell of other data.

    Args:
        own: the recipe of the run that goes on.
        checkpoint: the state it takes up; one without a recipe is not compared.
        override: settings that may differ.

    Raises:
        InputError: names the first setting that differs, with both values.
    """
    earlier = read_recipe(checkpoint) or {}
    stated = earlier.get("input", {})
    for name, value in own["input"].items():
        if _differs(stated.get(name), value):
            check_override(name, value, stated[name], checkpoint, override)
    data, before = own.get("trained_on", {}), earlier.get("trained_on", {})
    for name in ("datasets", "cases", "patients"):
        if _differs(before.get(name), data.get(name)):
            logger.warning(
                "%s was begun with other data (%s: %s, now %s) and goes on with this: the result is not one run's",
                *(checkpoint, name, before[name], data.get(name)),
            )
            break


def _differs(stated: Any, value: Any) -> bool:
    """Whether a setting was stated with another value; None, of a range of pixel sizes, states nothing."""
    return stated is not None and stated != value


def _settled(name: str, value: Any) -> Any:
    """A setting in the one form that recipes hold."""
    if name not in DEFAULTS:
        raise InputError(f"{name} is no setting of a recipe; known are {', '.join(DEFAULTS)}.")
    if name == "window":
        window = IntensityWindow(value).window
        return list(window) if isinstance(window, tuple) else window
    if name == "pixel_size_mm":
        return list(check_pixel_sizes(value))
    return bool(value) if name == "body_view" else int(value)


def read_recipe(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The recipe of a checkpoint, read without running code and checked against the schema.

    Args:
        checkpoint: a `.pt` or `.safetensors` file.

    Returns:
        the recipe; None where the file carries none.

    Raises:
        InputError: the file is missing, or its recipe does not fit the schema.
    """
    record = read_record(checkpoint)
    if record is not None:
        check_recipe(record, checkpoint)
    return record if record is not None and "network" in record else None


def check_recipe(record: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Check a recipe against `recipe.schema.json`.

    Args:
        record: the recipe.
        source: the file, for the message.

    Raises:
        InputError: names the first entry that does not fit.
    """
    errors = sorted(_schema().iter_errors(record), key=lambda error: len(error.path), reverse=True)
    if errors:
        place = "/".join(str(part) for part in errors[0].path) or "top"
        reason = errors[0].message if len(errors[0].message) < 300 else errors[0].message[:300] + " ..."
        raise InputError(
            f"{source}: its recipe does not fit the schema (at {place}: {reason}); it was damaged or written by "
            "another version: take a whole copy, or train again."
        )


@cache
def _schema() -> Any:
    return jsonschema.Draft7Validator(json.loads((PACKAGE / "recipe.schema.json").read_text(encoding="utf-8")))


def lasting_objects(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every object that a checkpoint's last training had examples of, with its wordings.

    Args:
        record: a recipe (`read_recipe`); may be empty.
    """
    known = record.get("trained_on", {})
    gone = set(known.get("earlier_only", []))
    return {name: texts for name, texts in known.get("objects", {}).items() if name not in gone}


def wording_book_of(
    recipe: Recipe, file: str | os.PathLike[str] | None = None, file_mode: str = "extend"
) -> WordingBook:
    """The wordings to ask with: a file's where one is given, else those that the network was trained with.

    Args:
        recipe: of the run.
        file: a wording book, or None.
        file_mode: as in `WordingBook`, of `file`.

    Raises:
        InputError: see `WordingBook`.
    """
    stated = recipe.content.get("prompts")
    if file is not None or stated is None:
        return WordingBook(file=None if file is None else Path(file), file_mode=file_mode)
    book = WordingBook(stated["templates"], file_mode=stated["mode"])
    book.entries = check_entries(stated["entries"], f"the recipe of {recipe.checkpoint}")
    return book


def update_recipe(checkpoint: str | os.PathLike[str], **changes: Mapping[str, Any]) -> None:
    """Write entries into a checkpoint's recipe, for example thresholds that validation chose.

    Args:
        checkpoint: a checkpoint with a recipe; it is replaced as a whole.
        changes: parts of the recipe, each merged into what is there: `thresholds={"existence": 0.4}`.

    Raises:
        InputError: the file has no recipe, or the result does not fit the schema.
    """
    recipe = read_recipe(checkpoint)
    if recipe is None:
        raise InputError(f"{checkpoint} carries no recipe to write into; train it with this bundle.")
    merged = {**recipe, **{name: {**recipe.get(name, {}), **part} for name, part in changes.items()}}
    check_recipe(merged, checkpoint)
    save_atomically(read_checkpoint(checkpoint), checkpoint, merged)


def bundle_at(bundle_root: str | os.PathLike[str]) -> Path:
    """The bundle's folder; where `bundle_root` is none (a run from elsewhere), the one that belongs to this package."""
    root = Path(bundle_root)
    return root if (root / "configs" / "train.json").is_file() else bundle_folder()


def versions() -> dict[str, str]:
    """Versions of what computes, for a recipe."""
    found = {}
    for name in (
        "boltzformer",
        "boltzformer-monai-bundle",
        "torch",
        "monai",
        "timm",
        "transformers",
        "open_clip_torch",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the bundle may run from its folder
            continue
    return found
