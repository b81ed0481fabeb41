"""The literal commands, from the bundle's folder."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.configs.conftest import ENVIRONMENT, SMALL_RUN, bundle_command, settings
from tests.support import BUNDLE, raises_input_error, write_json


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def _rows(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "slices.csv").open()))


def _same_weights(first: Path, second: Path) -> bool:
    left, right = (torch.load(path, weights_only=True) for path in (first, second))
    left, right = left.get("network", left), right.get("network", right)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_training_leaves_all_it_should(trained):
    out = trained.folder / "out"
    assert {"last.pt", "log.txt", "validation", "curves.csv", "curves.png"} <= {path.name for path in out.iterdir()}
    state = torch.load(trained.weights, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for part in (
        "this training:",
        "object 'liver': in 3 cases",
        "random weights",
        "loader alone gives",
        "training: epoch 2/2",
        "pairs/s",
        "validation: epoch 2",
        "best val_dice",
    ):
        assert part in trained.output
        assert part in (out / "log.txt").read_text()
    events = EventAccumulator(str(out)).Reload()
    del events
    tags = set()
    for file in out.glob("events.*"):
        tags |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    assert {"train_loss", "val_dice", "val_loss"} <= tags


def test_fresh_clone_trains_on_phantoms(tmp_path, run_bundle, overlay):
    # no --dataset_dir; the phantoms are made small to save time
    small = ["--data_path#num_training", "2", "--data_path#num_validation", "1", "--data_path#size", "[48,48,12]"]
    command = bundle_command("run", "configs/train.json", overlay)
    done = run_bundle([*command, *settings(tmp_path, None), *small, "--max_epochs", "1"])
    said = [line for line in done.stdout.splitlines() if "generated" in line]
    assert len(said) == 1
    assert "phantom" in said[0]
    assert (tmp_path / "runs" / "phantoms" / "dataset.json").is_file()
    assert (tmp_path / "model.pt").is_file()


def test_a_resident_training_set_trains_and_resumes(tmp_path, run_bundle, overlay):
    small = ["--data_path#num_training", "2", "--data_path#num_validation", "1", "--data_path#size", "[48,48,12]"]
    command = bundle_command("run", "configs/train.json", overlay, "configs/resident.json")
    more = ["--prompts_per_slice", "3", "--negative_share", "0.3", "--empty_share", "0.2"]
    first = run_bundle([*command, *settings(tmp_path, None), *small, *more, "--max_epochs", "1"])
    assert "training: epoch 1/1" in first.stdout
    again = run_bundle([*command, *settings(tmp_path, None), *small, *more, "--max_epochs", "2", "--resume", "true"])
    assert "training: epoch 2/2" in again.stdout
    assert (tmp_path / "out" / "last.pt").is_file()


@pytest.fixture(scope="module")
def evaluated(trained, run_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    command = bundle_command("evaluating", "configs/evaluate.json", trained.overlay)
    done = run_bundle(
        [*command, *settings(folder, trained.dataset), "--checkpoint", str(trained.weights), "--negative_share", "0.3"]
    )
    assert "By share of the slice" in done.stdout
    return folder / "out"


def test_evaluation_reports(evaluated):
    summary = _summary(evaluated)
    rows = _rows(evaluated)
    assert len(rows) - 1 == summary["overall"]["n"] + summary["overall"]["negatives"]["n"]
    assert summary["overall"]["negatives"]["n"] > 0
    account = json.loads((evaluated / "manifest.json").read_text())
    assert (account["command"], account["asked"], account["done"]) == ("evaluation", 2, 2)
    assert all(len(entry["inputs"]) == 2 for entry in account["entries"])
    assert len(account["weights"][0]["sha256"]) == 64


def test_two_processes_evaluate_to_the_same_numbers(trained, evaluated, run_bundle, tmp_path):
    files = ("configs/evaluate.json", "configs/multi_gpu_evaluate.json", trained.overlay)
    run_bundle(
        [
            *bundle_command("evaluating", *files, processes=2),
            *settings(tmp_path, trained.dataset),
            *("--checkpoint", str(trained.weights), "--negative_share", "0.3"),
        ]
    )
    assert _rows(tmp_path / "out") == _rows(evaluated)
    assert _summary(tmp_path / "out") == _summary(evaluated)


def test_two_processes_train_and_resume(trained, run_bundle, tmp_path):
    files = ("configs/train.json", "configs/multi_gpu_train.json", trained.overlay)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # warm-up aside the schedule depends on the length of the run: keep the rate flat, so that parts fit together
    flat = ["--warmup_share", "0", "--schedule#final_share", "1.0"]
    train = bundle_command("training", *files, processes=2)
    run_bundle([*train, *settings(whole, trained.dataset), *flat])
    run_bundle([*train, *settings(parts, trained.dataset), *flat, "--max_epochs", "1"])
    run_bundle([*train, *settings(parts, trained.dataset), *flat, "--resume", "true"])
    assert _same_weights(whole / "out" / "last.pt", parts / "out" / "last.pt")
    assert _same_weights(whole / "model.pt", parts / "model.pt")
    assert len(torch.load(whole / "out" / "last.pt", weights_only=True)["random"]) == 2
    assert len(list((whole / "out").glob("events.*"))) == 2  # of the first process alone: training and validation


def test_inference_of_what_was_trained(trained, run_bundle, tmp_path):
    command = bundle_command("run", "configs/inference.json", trained.overlay)
    run_bundle([*command, *settings(tmp_path, trained.dataset), "--checkpoint", str(trained.weights)])
    for case in ("phantom_validation_000", "phantom_validation_001"):
        image = nib.load(trained.dataset / "imagesTr" / f"{case}.nii.gz")
        label = nib.load(tmp_path / "out" / f"{case}.nii.gz")
        assert label.shape == image.shape
        assert np.array_equal(label.affine, image.affine)
        assert (tmp_path / "out" / case / "liver.nii.gz").is_file()


def test_killed_training_resumes_to_the_same_result(trained, run_bundle, tmp_path):
    command = bundle_command("training", "configs/train.json", trained.overlay)
    long = ["--max_epochs", "2", "--checkpoint_every_minutes", "0.0001"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_bundle([*command, *settings(whole, trained.dataset), *long])

    process = subprocess.Popen(
        [*command, *settings(cut, trained.dataset), *long],
        cwd=BUNDLE,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last = cut / "out" / "last.pt"
    deadline = time.monotonic() + 300
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(last, weights_only=True)["progress"]
    assert 0 < done["iteration"] < 2 * done["epoch_length"]

    run_bundle([*command, *settings(cut, trained.dataset), *long, "--resume", "true"])
    assert _same_weights(whole / "out" / "last.pt", last)
    assert _same_weights(whole / "model.pt", cut / "model.pt")
    assert _rows(whole / "out" / "validation") == _rows(cut / "out" / "validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def#image_encoder#name": "no_such_backbone"}, "no_such_backbone"),
        ({"dataset_dir": "/no/such/dataset"}, "/no/such/dataset"),
        ({"initial_weights": "/no/such/file.pt"}, "no checkpoint at /no/such/file.pt"),
        ({"window": "nonsense"}, "window 'nonsense' is not known"),
    ],
    ids=["backbone", "dataset", "weights", "window"],
)
def test_a_mistake_ends_training_before_it_begins(changes, message, phantoms, tmp_path):
    overlay = write_json(tmp_path / "overlay.json", {**SMALL_RUN, "dataset_dir": str(phantoms), **changes})
    workflow = ConfigWorkflow(
        [str(BUNDLE / "configs" / "train.json"), str(overlay)],
        logging_file=False,
        bundle_root=str(BUNDLE),
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(tmp_path / "cache"),
    )
    workflow.initialize()
    with raises_input_error(message):
        workflow.run()
    assert not (tmp_path / "runs" / "train" / "last.pt").exists()
