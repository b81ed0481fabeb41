"""The small network as the commands find it, and a shell to type them into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from boltzformer.apps import cli
from click.testing import Result
from typer.testing import CliRunner

from tests.inference.conftest import network, overlay, segmenter, weights  # noqa: F401


@pytest.fixture
def shell() -> Callable[..., Result]:
    """Runs `boltzformer ...` in this process."""
    return lambda *arguments: CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def segment(shell, weights: Path, overlay: Path) -> Callable[..., Result]:  # noqa: F811
    """Runs `boltzformer segment ...` with the small network."""
    fixed = ["--weights", weights, "--overlay", overlay, "--window", "soft_tissue", "--device", "cpu"]
    return lambda *arguments: shell("segment", *arguments, *fixed)
