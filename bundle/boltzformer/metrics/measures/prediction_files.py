"""Which files hold the prediction of an object in a case, in the layouts that tools write.

For case `pt_7` and object "left parotid gland" (label value 4), the first that exists:

1. `pt_7/left_parotid_gland.nii.gz`: a binary mask in a folder of the case, as this bundle's inference and
   TotalSegmentator write;
2. `pt_7_left_parotid_gland.nii.gz`: a binary mask;
3. `pt_7.nii.gz`: a label map with the label's own values, as nnU-Net writes. It is not looked at where the case has
a
   folder: the label map that lies beside such a folder numbers its prompts in an order of its own.

Names are compared without regard to case, and with spaces, underscores and hyphens alike. A probability map of the
object lies beside the mask, with `_probability` or `_prob` before the extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boltzformer.errors import InputError
from boltzformer.json_file import read_json

EXTENSIONS = (".nii.gz", ".nii")
PROBABILITY_SUFFIXES = ("probability", "prob")


@dataclass(frozen=True)
class Prediction:
    """Files of one object in one case.

    Attributes:
        path: binary mask, or label map.
        value: None for a binary mask; the object's value in a label map.
        probability: probability map of the object, or None.
    """

    path: Path
    value: int | None
    probability: Path | None


class PredictionFolder:
    """The volumes below a folder (and its folders), looked up by case and object.

    Args:
        folder: where the predictions are.
        aliases: object name to the name that the files use, for tools with names of their own
            (`{"left parotid gland": "parotid_gland_left"}`).
        cases: names whose files alone count, where others may lie in the folder; None takes all.

    Raises:
        InputError: where the folder does not exist or has no volume in it.
    """

    def __init__(
        self, folder: str | Path, aliases: Mapping[str, str] | None = None, cases: Iterable[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder: give the folder with the predicted NIfTI files")
        self.aliases = dict(aliases or {})
        self.files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            stem = strip_extension(relative.as_posix())
            # hidden files are drafts of a run that still writes or was killed, or macOS's companions (._x.nii.gz)
            hidden = any(part.startswith(".") for part in relative.parts)
            if stem is not None and not hidden and path.is_file() and stem.count("/") <= 1:
                self.files.setdefault(lookup_key(stem), []).append(path)
        if cases is not None:
            others = set(self.without_label(cases))
            self.files = {stem: paths for stem, paths in self.files.items() if not others.issuperset(paths)}
        self.folders = {stem.split("/")[0] for stem in self.files if "/" in stem}
        if not self.files:
            raise InputError(f"{self.folder} has no prediction: it should hold .nii.gz or .nii files")

    def find(self, names: Sequence[str], object_name: str, value: int) -> Prediction:
        """Files of an object in a case.

        Args:
            names: what the case may be called: the label file's name without extension, then the image's.
            object_name: the object.
            value: its value in label maps.

        Raises:
            InputError: where there is none, naming what was looked for, or where two files stand for one mask.
        """
        own = self.aliases.get(object_name, object_name)
        for stem in (f"{case}{joint}{own}" for case in names for joint in "/_"):
            path = self._file(stem)
            if path is not None:
                return Prediction(path, None, self._probability(stem))
        for case in names:
            path = self._file(case)
            if path is not None and lookup_key(case) not in self.folders:
                return Prediction(path, value, self._probability(f"{case}_{own}"))
        case, slug = names[0], re.sub(r"[ -]+", "_", own)
        raise InputError(
            f"{self.folder}: no prediction of '{object_name}' for case {case}; looked for {case}/{slug}.nii.gz, "
            f"{case}_{slug}.nii.gz and, where {case} has no folder, {case}.nii.gz"
        )

    def existence(
        self, names: Sequence[str], object_name: str, axis: int, key: str = "slice_probability"
    ) -> list[float] | None:
        """Probability that an object is in each slice, from the sidecar that this bundle's inference writes.

        Args:
            names: what the case may be called.
            object_name: the object.
            axis: of the slices, in RAS orientation.
            key: of the sidecar; `slice_probability_alone` are the scores before neighbouring slices had to agree.

        Returns:
            one for each slice; None where there is no sidecar, no score in it, or one of slices along another axis.

        Raises:
            InputError: a sidecar that cannot be read.
        """
        own = lookup_key(self.aliases.get(object_name, object_name))
        for path in (self.folder / f"{case}.json" for case in names):
            if not path.is_file():
                continue
            notes = read_json(path, "sidecar")
            if not isinstance(notes, dict) or notes.get("slice_axis") != axis:
                continue
            for entry in notes.get("labels", []):
                if lookup_key(str(entry.get("name", ""))) == own and entry.get(key):
                    return [float(p) for p in entry[key]]
        return None

    def _file(self, stem: str) -> Path | None:
        paths = self.files.get(lookup_key(stem), [])
        if len(paths) > 1:
            names = " and ".join(str(path) for path in paths)
            raise InputError(f"{names} have one name but for extension, case and spaces: keep the one to score")
        return paths[0] if paths else None

    def _probability(self, stem: str) -> Path | None:
        found = (self._file(f"{stem}_{suffix}") for suffix in PROBABILITY_SUFFIXES)
        return next((path for path in found if path is not None), None)

    def without_label(self, cases: Iterable[str]) -> list[Path]:
        """Volumes that belong to none of the cases: predictions whose label is missing."""
        known = {lookup_key(case) for case in cases}

        def belongs(stem: str) -> bool:
            top = stem.split("/")[0]
            return top in known or any(top.startswith(case + "_") for case in known)

        return [path for stem, paths in self.files.items() if not belongs(stem) for path in paths]


def strip_extension(name: str) -> str | None:
    """A NIfTI file's name without its extension; None for another file."""
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return None


def lookup_key(stem: str) -> str:
    """A name without regard to case, and with spaces, underscores and hyphens alike."""
    return re.sub(r"[\s_-]+", "_", stem.casefold())
