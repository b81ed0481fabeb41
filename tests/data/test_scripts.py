from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def _run(name: str, *arguments: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, list(arguments))


def test_make_phantoms_then_prepare_data(tmp_path):
    folder = tmp_path / "set"
    arguments = [str(folder), "--training", "2", "--validation", "1", "--size", "48", "48", "12"]
    result = _run("make_phantoms", *arguments)
    assert result.exit_code == 0, result.output
    assert "Wrote 2 + 1 volumes" in result.output
    assert "Already there" in _run("make_phantoms", *arguments).output

    options = ["--spatial-size", "64", "--workers", "0", "--seconds", "0.2", "--batch-size", "4"]
    result = _run("prepare_data", str(folder), "--cache-dir", str(tmp_path / "cache"), *options)
    assert result.exit_code == 0, result.output
    assert "lung nodule" in result.output
    assert "slices/s" in result.output


@pytest.mark.parametrize("name", ["make_phantoms", "prepare_data"])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, name):
    (tmp_path / "dataset.json").write_text("{}")
    result = _run(name, str(tmp_path))
    assert result.exit_code == 2
    assert "Error:" in result.output
    assert "Traceback" not in result.output
