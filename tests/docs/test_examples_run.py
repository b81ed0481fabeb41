"""The README's examples, run as written: only the paths of the data are exchanged, and the network is small."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from boltzformer.data.phantom import write_phantoms

from tests.docs.blocks import ROOT, blocks, commands
from tests.support import BUNDLE, SMALL_NETWORK, write_json

pytestmark = pytest.mark.slow
README = ROOT / "README.md"
SMALL = {**SMALL_NETWORK, "max_epochs": 1, "samples_per_epoch": 16, "batch_size": 4, "num_workers": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A copy of the bundle, phantoms as the user's data, and an overlay that makes the network small."""
    folder = tmp_path_factory.mktemp("readme")
    left_out = shutil.ignore_patterns("__pycache__", "runs", "cache", "*.pt")
    shutil.copytree(BUNDLE, folder / "bundle", ignore=left_out)
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=left_out)
    write_phantoms(folder / "data" / "Task06_Lung", num_training=2, num_validation=1, size=(64, 64, 12))
    shutil.copy(next((folder / "data/Task06_Lung/imagesTr").glob("*validation*")), folder / "data" / "ct.nii.gz")
    write_json(folder / "bundle" / "configs" / "small.json", SMALL)
    return folder


def _run(place: Path, words: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(place / "bundle"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=place / "bundle", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, shlex.join(words) + done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def _here(place: Path, words: list[str]) -> list[str]:
    """A command with this Python, these data, and, where it trains, the small network on top."""
    words = [word.replace("/data/", f"{place}/data/") for word in words]
    words = [sys.executable if word == "python" else word for word in words]
    if "training" in words:
        at = words.index("--config_file") + 1
        files = [*re.findall(r"configs/[\w/]+\.json", words[at]), "configs/small.json"]
        words[at] = "[" + ",".join(f"'{file}'" for file in files) + "]"
    return words


def test_train_evaluate_and_segment(place):
    runs = [words for words in commands(README) if "monai.bundle" in words]
    wanted = {run: next(words for words in runs if run in words) for run in ("training", "evaluating", "inference")}
    _run(place, _here(place, wanted["training"]))
    assert (place / "bundle" / "models" / "model.pt").is_file()
    assert "By share of the slice" in _run(place, _here(place, wanted["evaluating"]))
    _run(place, _here(place, wanted["inference"]))
    label = nib.load(place / "bundle" / "runs" / "inference" / "ct.nii.gz")
    assert label.shape == nib.load(place / "data" / "ct.nii.gz").shape


def test_python_api(place):
    (block,) = blocks(README, "python")
    if not (place / "bundle" / "models" / "model.pt").is_file():
        pytest.fail("the README's training left no weights")
    said = _run(place, [sys.executable, "-c", block.text.replace("/data/", f"{place}/data/")])
    assert len(re.findall(r"^\w+ \d+ voxels$", said, re.MULTILINE)) == 2
    assert (place / "data" / "masks" / "ct.nii.gz").is_file()
