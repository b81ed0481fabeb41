"""Real head and neck CT: the network learns two volumes, and what it infers lies on the organs."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from tests.configs.conftest import bundle_command, settings
from tests.support import write_json

WANTED_DICE = 0.8


@pytest.mark.slow
def test_two_volumes_are_learnt(real_data_dir, run_bundle, tmp_path):
    source = real_data_dir / "openkbp"
    content = json.loads((source / "dataset.json").read_text())
    items = [{key: str(source / item[key]) for key in ("image", "label")} for item in content["training"][:2]]
    # the same volumes on both sides, on purpose: can it learn them at all?
    content["training"] = [{**item, "patient": f"learnt {i}"} for i, item in enumerate(items)]
    content["validation"] = [{**item, "patient": f"asked {i}"} for i, item in enumerate(items)]
    content["body_part"] = "head and neck"
    dataset = write_json(tmp_path / "dataset.json", content)
    overlay = write_json(tmp_path / "overlay.json", {"max_epochs": 30, "val_interval": 6})
    configs = ("configs/demo.json", overlay)
    flags = ["--negative_share", "0", "--samples_per_epoch", "400"]
    run_bundle([*bundle_command("training", "configs/train.json", *configs), *settings(tmp_path, dataset), *flags])
    summary = json.loads((tmp_path / "out" / "validation" / "summary.json").read_text())["overall"]
    assert summary["mean_dice"] > WANTED_DICE, summary

    prompts = write_json(tmp_path / "prompts.json", {"mandible": "mandible in head and neck CT"})
    command = bundle_command("inference", "configs/inference.json", *configs)
    where = ["--prompt_list", str(prompts), "--modality", "CT", "--output_dir", str(tmp_path / "masks")]
    run_bundle([*command, *settings(tmp_path, None), "--dataset_dir", items[0]["image"], *where])
    (mask_file,) = (tmp_path / "masks").glob("*/mandible.nii.gz")
    mask = np.asarray(nib.load(mask_file).dataobj) > 0
    label = nib.load(items[0]["label"])
    value = next(int(v) for v, name in content["labels"].items() if "mandible" in name.lower())
    truth = np.asarray(label.dataobj) == value
    slices = truth.any(axis=tuple(axis for axis in range(3) if axis != _axial(label.affine)))
    on_truth = np.moveaxis(mask, _axial(label.affine), 0)[slices]
    truth = np.moveaxis(truth, _axial(label.affine), 0)[slices]
    assert 2 * (on_truth & truth).sum() / (on_truth.sum() + truth.sum()) > WANTED_DICE


def _axial(affine: np.ndarray) -> int:
    """The axis of the file that runs from feet to head."""
    return next(axis for axis, code in enumerate(nib.aff2axcodes(affine)) if code in "IS")
