"""`boltzformer phantoms` and `boltzformer cache`."""

from __future__ import annotations

import pytest
import typer
from boltzformer.apps import cache, cli, phantoms
from typer.testing import CliRunner


def _run(module, *arguments: str):
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, list(arguments))


def test_phantoms_then_cache(tmp_path):
    folder = tmp_path / "set"
    arguments = [str(folder), "--training", "2", "--validation", "1", "--size", "48", "48", "12"]
    result = _run(phantoms, *arguments)
    assert result.exit_code == 0, result.output
    assert "Wrote 2 + 1 volumes" in result.output
    assert "Already there" in _run(phantoms, *arguments).output

    options = ["--spatial-size", "64", "--workers", "0", "--seconds", "0.2", "--batch-size", "4"]
    result = _run(cache, str(folder), "--cache-dir", str(tmp_path / "cache"), *options)
    assert result.exit_code == 0, result.output
    assert "lung nodule" in result.output
    assert "pairs/s" in result.output


@pytest.mark.parametrize("module", [phantoms, cache])
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, module):
    (tmp_path / "dataset.json").write_text("{}")
    result = _run(module, str(tmp_path))
    assert result.exit_code == 2
    assert "Error:" in result.output
    assert "Traceback" not in result.output


def test_every_script_is_a_subcommand_and_lists_its_options():
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for name in (
        "phantoms",
        "prepare",
        "cache",
        "evaluate-bundle",
        "evaluate-predictions",
        "statistics",
        "trace",
        "export",
        "convert",
        "demo",
    ):
        assert name in shown.output
        assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0
    made = CliRunner().invoke(cli.app, ["phantoms", "--no-such-option"])
    assert made.exit_code == 2
