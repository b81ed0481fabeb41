"""nnU-Net in its own environment: the same split, its commands, its predictions scored here."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps.nnunet import app
from boltzformer.data.nnunet_export import export_dataset, number_back
from boltzformer.data.phantom import write_phantoms
from boltzformer.errors import InputError
from boltzformer.metrics.files import read_csv
from typer.testing import CliRunner

from tests.support import write_json

ENVIRONMENT = os.environ.get("NNUNET_ENVIRONMENT", "")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnunet") / "set"
    write_phantoms(folder, num_training=3, num_validation=2, size=(48, 48, 16))
    return folder


def _dice(report: Path) -> list[float]:
    """Of the slices that hold their object."""
    return [float(row["dice"]) for row in read_csv(report / "slices.csv") if row["dice"]]


@pytest.fixture
def odd_values(phantoms, tmp_path) -> Path:
    """The same with label values 2, 5 and 9, and a test list."""
    content = json.loads((phantoms / "dataset.json").read_text())
    names = [name for value, name in content["labels"].items() if int(value)]
    items = {}
    for section in ("training", "validation"):
        items[section] = [{key: str(phantoms / path) for key, path in item.items()} for item in content[section]]
        for item in items[section]:
            image = nib.load(item["label"])
            label = np.array([0, 2, 5, 9], np.uint8)[np.asarray(image.dataobj).astype(int)]
            item["label"] = str(tmp_path / "labels" / Path(item["label"]).name)
            Path(item["label"]).parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(label, image.affine), item["label"])
    items["test"] = [items["training"].pop()]
    labels = dict(zip(("2", "5", "9"), names, strict=True))
    return write_json(tmp_path / "odd" / "dataset.json", {**content, **items, "labels": labels}).parent


def test_the_split_is_fold_0_and_labels_are_numbered_from_1(odd_values, tmp_path):
    raw = export_dataset(odd_values, tmp_path / "raw", 7)
    assert raw.name == "Dataset007_BoltzFormerphantoms"
    assert json.loads((raw / "splits_final.json").read_text()) == [
        {
            "train": ["phantom_training_000", "phantom_training_001"],
            "val": ["phantom_validation_000", "phantom_validation_001"],
        }
    ]
    description = json.loads((raw / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert list(description["labels"].values()) == [0, 1, 2, 3]
    assert description["numTraining"] == 4
    assert [file.name for file in (raw / "images_test").iterdir()] == ["phantom_training_002_0000.nii.gz"]
    assert not (raw / "labelsTr" / "phantom_training_002.nii.gz").exists()
    source = np.asarray(nib.load(tmp_path / "labels" / "phantom_training_000.nii.gz").dataobj)
    written = np.asarray(nib.load(raw / "labelsTr" / "phantom_training_000.nii.gz").dataobj)
    assert set(np.unique(written)) == {0, 1, 2, 3}
    assert np.array_equal(np.array([0, 2, 5, 9])[written], source)
    with pytest.raises(InputError, match="exists"):
        export_dataset(odd_values, tmp_path / "raw", 7)
    # and back: what nnU-Net would write
    nib.save(nib.Nifti1Image(written, np.eye(4)), tmp_path / "phantom_training_000.nii.gz")
    assert number_back(tmp_path, raw) == 1
    assert np.array_equal(np.asarray(nib.load(tmp_path / "phantom_training_000.nii.gz").dataobj), source)


def test_labels_in_order_are_linked(phantoms, tmp_path):
    raw = export_dataset(phantoms, tmp_path, 1)
    assert all(file.is_symlink() for file in (raw / "labelsTr").iterdir())
    assert len(list((raw / "images_validation").iterdir())) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no prediction"):
        number_back(tmp_path / "empty", raw)


def test_commands_run_in_the_environment_with_its_folders(phantoms, tmp_path, monkeypatch):
    """Stands for nnU-Net: programs that note how they were called, and predict what the labels say."""
    monkeypatch.setenv("PYTHONPATH", "/of/this/environment")
    work, environment = tmp_path / "work", tmp_path / "env"
    programs = environment / "bin"
    programs.mkdir(parents=True)
    for name in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"):
        script = f'#!/bin/bash\necho "{name} $@ [$nnUNet_raw|$PYTHONPATH]" >> {tmp_path}/calls\n'
        if name.endswith("preprocess"):
            script += 'mkdir -p "$nnUNet_preprocessed/Dataset003_BoltzFormerphantoms"\n'
        if name.endswith("predict"):
            script += 'mkdir -p "$4"; cp -L "$nnUNet_raw"/Dataset003_*/labelsTr/phantom_validation* "$4"\n'
        (programs / name).write_text(script)
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IEXEC)
    runner, common = CliRunner(), ["--number", "3", "--environment", str(environment)]

    def call(*arguments: str) -> str:
        done = runner.invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    call("convert", str(phantoms), str(work), "--number", "3")
    refused = runner.invoke(app, ["train", str(work), *common])
    assert refused.exit_code == 2
    call("plan", str(work), *common)
    call("train", str(work), *common, "--device", "cpu", "--trainer", "nnUNetTrainer_1epoch")
    call("predict", str(work), *common, "--section", "validation", "--device", "cpu")
    call("score", str(work), "--number", "3", "--section", "validation", "--output-dir", str(tmp_path / "report"))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1].startswith("nnUNetv2_train 3 3d_fullres 0 -tr nnUNetTrainer_1epoch -device cpu ")
    assert all(line.endswith(f"[{work / 'raw'}|]") for line in calls)
    split = work / "preprocessed" / "Dataset003_BoltzFormerphantoms" / "splits_final.json"
    assert len(json.loads(split.read_text())[0]["train"]) == 3
    assert set(_dice(tmp_path / "report")) == {1.0}


def test_an_environment_without_nnunet_is_said(tmp_path, phantoms):
    runner = CliRunner()
    assert runner.invoke(app, ["convert", str(phantoms), str(tmp_path)]).exit_code == 0
    done = runner.invoke(app, ["plan", str(tmp_path), "--environment", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert runner.invoke(app, ["plan", str(tmp_path / "x"), "--environment", str(tmp_path)]).exit_code == 2


SHORT_EPOCH = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerShort(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 5, 2
"""


@pytest.mark.slow
@pytest.mark.skipif(not ENVIRONMENT, reason="NNUNET_ENVIRONMENT names no environment with nnunetv2: make test-nnunet")
def test_nnunet_itself_trains_an_epoch_and_is_scored(phantoms, tmp_path):
    """An epoch of 5 steps, where nnU-Net's own has 250."""
    runner = CliRunner()
    trainer = ["--trainer", "nnUNetTrainerShort", "--device", "cpu"]
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "nnUNetTrainerShort.py").write_text(SHORT_EPOCH)
    settings = {
        "NNUNET_ENVIRONMENT": ENVIRONMENT,
        "nnUNet_extTrainer": str(tmp_path / "trainers"),
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
    }
    for command in (
        ["convert", str(phantoms), str(tmp_path)],
        ["plan", str(tmp_path), "--processes", "1"],
        ["train", str(tmp_path), *trainer],
        ["predict", str(tmp_path), "--section", "validation", *trainer],
        ["score", str(tmp_path), "--section", "validation", "--output-dir", str(tmp_path / "report")],
    ):
        done = runner.invoke(app, command, env=settings)
        assert done.exit_code == 0, done.output
    logs = "".join(file.read_text() for file in (tmp_path / "results").rglob("training_log*.txt"))
    assert "3 training and 2 validation cases" in logs
    dice = _dice(tmp_path / "report")
    assert len(dice) > 10
    assert 0 <= np.mean(dice) <= 1
