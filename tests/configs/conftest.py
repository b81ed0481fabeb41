"""One small training run from the command line, whose results the tests of this folder share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from boltzformer.data.phantom import write_phantoms

from tests.support import BUNDLE, SMALL_NETWORK, write_json

SMALL_RUN: dict[str, Any] = {
    **SMALL_NETWORK,
    "device": "$torch.device('cpu')",
    "window": "lung",
    "batch_size": 4,
    "max_epochs": 2,
    "learning_rate": 1e-3,
    "num_workers": 0,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"}


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, data, overlay and what it printed."""

    folder: Path
    dataset: Path
    overlay: Path
    output: str

    @property
    def weights(self) -> Path:
        return self.folder / "model.pt"


def settings(folder: Path, dataset: Path | None) -> list[str]:
    """Overrides that keep a run inside `folder`."""
    common = ["--runs_dir", str(folder / "runs"), "--cache_dir", str(folder / "cache")]
    common += ["--checkpoint", str(folder / "model.pt"), "--output_dir", str(folder / "out")]
    return [*common, "--dataset_dir", str(dataset)] if dataset else common


def bundle_command(run_id: str, *files: str | Path, processes: int = 1) -> list[str]:
    """`python -m monai.bundle run <run_id> --config_file ...`, under torchrun for several processes."""
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    call = ["-m", "monai.bundle", "run", run_id, "--config_file", listed]
    if processes == 1:
        return [sys.executable, *call]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *call]


@pytest.fixture(scope="session")
def run_bundle() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in the bundle's folder and gives what came of it; fails the test where it fails."""

    def run(command: list[str], expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=BUNDLE, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "set"
    write_phantoms(folder, num_training=3, num_validation=2, size=(64, 64, 12))
    return folder


@pytest.fixture(scope="session")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_json(tmp_path_factory.mktemp("overlay") / "small.json", SMALL_RUN)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, overlay: Path, run_bundle: Any) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    done = run_bundle([*bundle_command("training", "configs/train.json", overlay), *settings(folder, phantoms)])
    return Trained(folder, phantoms, overlay, done.stdout)
