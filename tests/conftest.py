"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Processes side by side share the cores: a pool of threads as wide as the machine in each of them only spins.
_SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _SIDE_BY_SIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _SIDE_BY_SIDE)))
# Commands that tests start import this checkout's package, whatever is installed in the environment.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "bundle"), *filter(None, [os.environ.get("PYTHONPATH")])])


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set {variable} to run this test)")
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference tensors, weights and the metadata schema, beside the project; skips where absent."""
    return _folder("BOLTZFORMER_SHARED", ROOT.parent / "shared")


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Real labelled scans, beside the project; skips where absent."""
    return _folder("BOLTZFORMER_DATA", ROOT.parent / "shared" / "data")
