"""What a training says before it begins."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.training.start_table import StartTable
from torch import nn


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SliceDataset:
    """Three cases of two patients: one with two objects, one with one of them, one empty."""
    folder = tmp_path_factory.mktemp("start")
    cases = []
    for number, values in enumerate([(1, 2), (1,), ()]):
        label = np.zeros((10, 10, 4), np.uint8)
        for value in values:
            label[3 * value : 3 * value + 2, 3:5, :2] = value
        files = {}
        for key, array in (("image", np.full(label.shape, -500, np.int16)), ("label", label)):
            files[key] = str(folder / f"{key}{number}.nii.gz")
            nib.save(nib.Nifti1Image(array, np.eye(4)), files[key])
        about = {"patient": f"p{min(number, 1)}", "dataset": "toy", "modality": "CT", "body_part": "chest"}
        cases.append({**files, **about, "objects": {1: "nodule", 2: "vessel"}})
    return SliceDataset(cases, folder / "cache", negative_share=0.5, training=True, progress=False)


def test_the_table_counts_what_is_there_and_what_is_left_out(data):
    network = nn.Sequential(nn.Linear(1000, 500, bias=False), nn.Linear(500, 1000, bias=False))
    network[1].requires_grad_(False)
    said = "\n".join(StartTable(data, data, network, {"window": "lung", "learning rate": 1e-4}, "model.pt").lines())
    assert "3 cases of 2 patients, 4 slices; 6 (slice, object) pairs with the object and 6 without" in said
    assert "Sequential, 1.0 M weights, 0.5 M of them learn" in said
    assert "object 'nodule': in 2 cases, 4 slices, 4 % of the slice" in said
    assert "object 'vessel': in 1 cases, 2 slices" in said
    assert "1 of 3 training cases hold no object" in said
    assert "image2.nii.gz" in said
    assert "3 times an object is absent from a whole case" in said  # vessel in the second, both in the third
    for text in ("window", "lung", "0.0001", "model.pt"):
        assert text in said


@pytest.mark.parametrize(
    ("start", "rate", "size", "device", "expected"),
    [
        (None, 2e-5, 256, "cpu", ["--learning_rate 0.0005"]),
        (None, 5e-4, 256, "cpu", []),
        ("model.pt", 2e-5, 256, "cpu", []),
        ("model.pt", 1e-4, (1024, 1024), "cpu", ["1024 px take days on a CPU"]),
        ("model.pt", 1e-4, 1024, "cuda:0", []),
    ],
)
def test_hints_where_settings_will_disappoint(data, start, rate, size, device, expected):
    settings = {"learning rate": rate, "working size, px": size, "device": device}
    hints = StartTable(data, data, nn.Linear(1, 1), settings, start).hints()
    assert len(hints) == len(expected)
    assert all(part in hint for part, hint in zip(expected, hints, strict=True))


def test_what_the_start_knows_and_nobody_teaches_is_told(data, tmp_path):
    def hints(*known: str) -> list[str]:
        return StartTable(data, data, nn.Linear(1, 1), {"learning rate": 1e-4}, "model.pt", known).hints()

    assert hints("Nodule", "vessel") == []
    named = [{**case, "objects": {**case["objects"], 3: "larynx"}} for case in data.data]
    declared = SliceDataset(named, tmp_path, training=True, progress=False)
    rate = {"learning rate": 1e-4}
    assert len(StartTable(declared, declared, nn.Linear(1, 1), rate, "model.pt", ["larynx"]).hints()) == 1
    (hint,) = hints("nodule", "larynx", "mandible")
    assert "knows larynx, mandible, which no case here shows" in hint
    assert "--keep-known" in hint
    assert "prepare known --object NAME" in hint, "it does not keep what was not measured on whole volumes"
