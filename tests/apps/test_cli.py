"""The list of commands, which is shown before any of them is imported."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer
from boltzformer.apps import cli

PLACES = {name: place for panel in cli.COMMANDS.values() for name, place in panel.items()}


@pytest.mark.parametrize("name", PLACES)
def test_a_command_is_listed_by_its_own_first_line(name):
    command = cli.load(name)
    first = inspect.cleandoc(command.help or "").splitlines()[0]
    assert command.name == name
    assert PLACES[name].line == first


def test_the_list_of_commands_and_a_name_mistyped_import_neither_torch_nor_monai():
    program = (
        "import sys; from boltzformer.apps import cli; from typer.testing import CliRunner; "
        "listed, wrong = (CliRunner().invoke(cli.app, [word]) for word in ('--help', 'segmnt')); "
        "assert listed.exit_code == 0 and 'evaluate-predictions' in listed.output, listed.output; "
        "assert wrong.exit_code == 2 and 'segment' in wrong.output, wrong.output; "
        "print([name for name in ('torch', 'monai', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_command_that_is_run_is_the_real_one(shell):
    done = shell("segment", "--help")
    assert done.exit_code == 0
    assert "--weights" in done.output
    assert shell("proof", "sides", "--help").exit_code == 0


def test_names_are_told_once():
    assert len(PLACES) == sum(len(panel) for panel in cli.COMMANDS.values())
    assert all(
        isinstance(cli.load(name), typer.core.TyperGroup) == (place.name == "app") for name, place in PLACES.items()
    )
