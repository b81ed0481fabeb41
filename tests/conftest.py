"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
