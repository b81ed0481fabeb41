"""Labels of the airway by thresholds: an object that the shipped weights do not know, to show what fine-tuning does.

python scripts/airway_labels.py /data/openkbp/dataset.json airway
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import nibabel as nib
import numpy as np
import typer
from scipy import ndimage

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.apps.console import one_line_errors
from boltzformer.data.cases import load_cases
from boltzformer.data.derived import read_scan
from boltzformer.errors import InputError
from boltzformer.metrics.files import write_json
from boltzformer.output_files import check_target
from boltzformer.volumes.names import case_name, check_names

BODY_HU, AIR_HU = -300, -400
LARGEST_MM2 = 1200.0
"""Of one part in a slice: lungs are larger."""
SMALLEST_MM3 = 1000.0
"""Of a part in the volume: gas elsewhere, and streaks beside teeth, are smaller."""


def airway(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Air inside the body's outline, slice by slice: trachea, pharynx, nose and sinuses.

    Args:
        image: CT in Hounsfield units, (X, Y, Z), slices along Z.
        spacing: mm along the three axes.

    Returns:
        uint8, 0 and 1.
    """
    label = np.zeros(image.shape, dtype=np.uint8)
    pixel = float(spacing[0] * spacing[1])
    for k in range(image.shape[2]):
        parts, count = ndimage.label(ndimage.binary_opening(image[..., k] > BODY_HU))
        if not count:
            continue
        body = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
        air = ndimage.binary_fill_holes(body) & (image[..., k] < AIR_HU)
        parts, _ = ndimage.label(air)
        pixels = np.bincount(parts.ravel())
        fitting = (pixels >= 3) & (pixels * pixel < LARGEST_MM2)
        fitting[0] = False
        label[..., k] = fitting[parts]
    parts, _ = ndimage.label(label, np.ones((3, 3, 3)))
    large = np.bincount(parts.ravel()) * pixel * float(spacing[2]) > SMALLEST_MM3
    large[0] = False
    return large[parts].astype(np.uint8)


def on_grid_of(image: str, label: nib.Nifti1Image) -> nib.Nifti1Image:
    """A label in RAS orientation, with its axes as an image file has them."""
    affine = cast(Any, nib.load(image)).affine
    ras = nib.orientations.axcodes2ornt("RAS")
    return label.as_reoriented(nib.orientations.ornt_transform(ras, nib.io_orientation(affine)))


def main(
    dataset: Annotated[
        Path, typer.Argument(help="Folder in Decathlon layout, or a datalist JSON, of head and neck CT.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder of the labels and of four datalists.")],
    train: Annotated[int, typer.Option(min=1, help="Scans to train on, the first of the validation list.")] = 17,
    validate: Annotated[int, typer.Option(min=1, help="Scans after these that choose the weights.")] = 3,
) -> None:
    """Label the airway in the validation scans; datalists of it and of the organs, with the last scans left out."""
    with one_line_errors():
        cases = load_cases(dataset, "validation")
        paths = label_files(cases, output / "labels")
        if len(cases) <= train + validate:
            raise InputError(f"{dataset}: {len(cases)} scans leave none out; lower --train or --validate.")
        write_labels(cases, paths, output, train, validate)
    print(f"{len(cases)} scans labelled: {output}")


def label_files(cases: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Where each case's label goes.

    Raises:
        InputError: two would be one file, or one would take an input's place.
    """
    paths = [folder / f"{case_name(case['label'])}.nii.gz" for case in cases]
    check_names((path.name, case["label"]) for path, case in zip(paths, cases, strict=True))
    inputs = [case[key] for case in cases for key in ("image", "label")]
    for path in paths:
        check_target(path, inputs)
    return paths


def write_labels(cases: list[dict[str, Any]], paths: list[Path], output: Path, train: int, validate: int) -> None:
    """Write the labels, and the datalists of them and of the organs."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[dict[str, str]]] = {"airway": [], "organs": []}
    for case, path in zip(cases, paths, strict=True):
        scan = read_scan(case)
        label = airway(scan.image, nib.affines.voxel_sizes(scan.affine))
        nib.save(on_grid_of(case["image"], nib.Nifti1Image(label, scan.affine)), path)
        full = {key: str(Path(case[key]).resolve()) for key in ("image", "label")}
        items["organs"].append(full)
        items["airway"].append({**full, "label": str(path.resolve())})
    objects = {str(value): name for case in cases for value, name in case["objects"].items()}
    for name, labels in (("airway", {"1": "airway"}), ("organs", objects)):
        rest = {"modality": "CT", "body_part": cases[0]["body_part"], "labels": labels}
        lists = {"training": items[name][:train], "validation": items[name][train : train + validate]}
        left = {"training": [], "validation": items[name][train + validate :]}
        for file, part in ((name, lists), (f"{name}_left_out", left)):
            write_json(output / f"{file}.json", {"name": file, **rest, **part})


if __name__ == "__main__":
    typer.run(main)
