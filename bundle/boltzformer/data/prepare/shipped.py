"""The data of the shipped network: two folders in Decathlon layout -> the datalists that its training takes.

The folders stay as they are. What their `dataset.json` does not say is added: body parts, the intensity window of 8-bit
crops, and that the crops' voxel size means nothing. The split is the folders' own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from boltzformer.data.cases import load_cases
from boltzformer.data.prepare.verify import file_sha256
from boltzformer.errors import InputError
from boltzformer.json_file import read_json, write_json
from boltzformer.volumes.names import case_name

SECTIONS = ("training", "validation")


@dataclass(frozen=True)
class ShippedPart:
    """One of the folders.

    Attributes:
        name: of its datalists.
        objects: that it must name, so that the folders cannot be confused.
        added: keys that its `dataset.json` lacks.
        every: of the validation cases, one in so many is looked at while training (`<name>_short.json`).
        wrong: validation cases with labels of something else. They count in every number; `<name>_sound.json` lists
            the validation without them, for a second one.
    """

    name: str
    objects: frozenset[str]
    added: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1
    wrong: frozenset[str] = frozenset()


OPENKBP = ShippedPart(
    "openkbp",
    frozenset({"brainstem", "spinal cord", "right parotid gland", "left parotid gland", "esophagus", "mandible"}),
    {"modality": "CT", "body_part": "head and neck"},
    4,
    # Seen in the images: pt_221's labels lie beside the organs, and its image is blank below the neck but for the cord;
    # the cord of the other two takes in the muscles behind the spine, 150 pixels in place of 8.
    frozenset({"pt_215", "pt_216", "pt_221"}),
)
LIDC_CROPS = ShippedPart(
    "lidc_crops",
    frozenset({"lung nodule"}),
    {"modality": "CT", "body_part": "lung", "window": [0, 255], "spacing": "unknown"},
    8,
)


PARTS = (OPENKBP, LIDC_CROPS)


def write_shipped_data(
    openkbp: Path, lidc_crops: Path, out: Path, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write the datalists and the split manifest.

    For each folder `<name>.json` holds all its training and validation cases and `<name>_short.json` the same training
    cases with a share of the validation cases, for the choice of weights while training. Where labels are known to be
    wrong, `<name>_sound.json` leaves those validation cases out. `split.json` lists every file of every section
    with its SHA-256.

    Args:
        openkbp: OpenKBP's head and neck CT in Decathlon layout.
        lidc_crops: 8-bit crops around LIDC-IDRI's nodules in Decathlon layout.
        out: folder of the datalists, made if needed.
        say: gets a line for each file that was written.

    Returns:
        the files that were written.

    Raises:
        InputError: a folder is another dataset, lacks a list or files, or has a patient in both lists.
    """
    written, split = [], {}
    for folder, part in ((openkbp, OPENKBP), (lidc_crops, LIDC_CROPS)):
        content = shipped_content(folder, part)
        for ending, every in (("", 1), ("_short", part.every)):
            chosen = {**content, "validation": content["validation"][::every]}
            path = write_json(out / f"{part.name}{ending}.json", chosen)
            counts = [len(load_cases(path, section)) for section in SECTIONS]  # also checks files and patients
            say(f"{path}: {counts[0]} training and {counts[1]} validation cases")
            written.append(path)
        if part.wrong:
            sound = [item for item in content["validation"] if case_name(item["image"]) not in part.wrong]
            written.append(write_json(out / f"{part.name}_sound.json", {**content, "validation": sound}))
            say(f"{written[-1]}: {len(sound)} validation cases, those with wrong labels left out")
        split[part.name] = _manifest(folder, content)
    path = write_json(out / "split.json", split)
    say(f"{path}: SHA-256 of every file")
    return [*written, path]


def shipped_content(folder: Path, part: ShippedPart) -> dict[str, Any]:
    """A folder's datalist with absolute paths, and with what its `dataset.json` does not say.

    Args:
        folder: in Decathlon layout.
        part: which of the folders it should be.

    Raises:
        InputError: it is another dataset, or lacks a list.
    """
    source = folder / "dataset.json"
    content = read_json(source, "dataset")
    if not isinstance(content, dict) or not all(content.get(section) for section in SECTIONS):
        raise InputError(f"{source}: needs a `training` and a `validation` list; the split must be the dataset's own.")
    found = {str(name).lower() for name in dict(content.get("labels", {})).values()}
    if not part.objects <= found:
        missing = ", ".join(sorted(part.objects - found))
        raise InputError(f"{source}: names no {missing}, so it is not the {part.name} folder; swap or correct the two.")
    lists = {section: [_absolute(item, folder) for item in content[section]] for section in SECTIONS}
    return {**content, **lists, "test": [], **part.added}


def _absolute(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {**item, **{key: str((folder / item[key]).resolve()) for key in ("image", "label")}}


def _manifest(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Files by section, named from the folder, with their checksums."""
    root = folder.resolve()
    listed: dict[str, Sequence[Mapping[str, Any]]] = {section: content[section] for section in SECTIONS}
    paths = [Path(item[key]) for item in chain(*listed.values()) for key in ("image", "label")]
    with ThreadPoolExecutor(4) as pool:
        sums = dict(zip(paths, pool.map(file_sha256, paths), strict=True))
    about = {key: content[key] for key in ("name", "licence", "reference") if key in content}
    return about | {
        section: {_below(Path(item[key]), root): sums[Path(item[key])] for item in items for key in ("image", "label")}
        for section, items in listed.items()
    }


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
