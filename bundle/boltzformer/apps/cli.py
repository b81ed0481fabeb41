"""The command `boltzformer`: one subcommand for each thing to do; also `python -m boltzformer`.

A command's module is imported when it is asked for: torch and MONAI take seconds to import, and the list of commands
needs neither, nor does a name mistyped.
"""

from __future__ import annotations

import io
import sys
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class Place(NamedTuple):
    """Where a command is.

    Attributes:
        module: in this folder.
        name: of the function in it, or of the Typer with commands of its own.
        line: what the list of commands says; a function's own first line.
    """

    module: str
    name: str
    line: str


COMMANDS: dict[str, dict[str, Place]] = {
    "Masks": {
        "segment": Place("segment", "main", "Mark what the prompts name, in every volume, on the volume's own grid."),
        "serve": Place("serve", "main", "Serve the network: a page for the browser, and HTTP for programs."),
        "label-server": Place(
            "label_server",
            "main",
            "Serve the network to 3D Slicer and OHIF: free text in, segments named after their prompts out.",
        ),
        "trace": Place(
            "trace",
            "main",
            "Draw slice, truth, prediction and the sampled patches; print the share of patches kept and of the object "
            "hit.",
        ),
        "demo": Place(
            "demo",
            "main",
            "Segment a real CT with the shipped weights; then train a small network on phantoms: minutes on a CPU.",
        ),
        "doctor": Place(
            "doctor", "main", "Look at the installation and run a self-test; ends with code 1 where something is bad."
        ),
        "info": Place(
            "info", "main", "Tell what this release is, what its weights were trained with, and what it can write."
        ),
    },
    "Training": {
        "prepare": Place(
            "prepare",
            "app",
            "Bring public datasets into Decathlon layout: split by patient, with wordings and checksums.",
        ),
        "phantoms": Place(
            "phantoms",
            "main",
            "Write CT-like volumes with labelled nodules, aorta and liver, from 0.005 % to 5 % of a slice.",
        ),
        "statistics": Place(
            "statistics",
            "main",
            "Mean, median, least and largest area in % of the slice for each object, with the support.",
        ),
        "cache": Place(
            "cache",
            "main",
            "Build the slice cache, count the examples of each object, and print how fast the loader is.",
        ),
        "train": Place("runs", "train", "Train a network; its best weights become OUTPUT/model.pt."),
        "finetune": Place(
            "runs",
            "finetune",
            "Go on training from weights, with the network and the settings that they were trained with.",
        ),
        "launch": Place("launch", "app", "Files that start a training on several machines."),
        "cost": Place("cost", "main", "Count a forward pass and estimate the rest; nothing is run."),
    },
    "Evaluation": {
        "evaluate": Place("runs", "evaluate", "Score weights on labelled volumes: tables by object size, a report."),
        "evaluate-bundle": Place("evaluate_bundle", "main", "Segment every object of every case and evaluate."),
        "evaluate-predictions": Place(
            "evaluate_predictions",
            "main",
            "Score predictions; write CSV, JSON and a report that opens without a network.",
        ),
        "proof": Place(
            "proof",
            "app",
            "Wordings, sides, fields of view, shifted crops and far prompts: what a checkpoint claims beside its Dice.",
        ),
        "calibrate": Place(
            "calibrate",
            "main",
            "Choose temperature and threshold of the existence score, and the distance of a coarse pass's first looks.",
        ),
    },
    "Experiments and peers": {
        "experiment": Place(
            "experiment",
            "main",
            "Train and evaluate every row of a table that has no result yet, then write the table, or draw the figure.",
        ),
        "small-proof": Place(
            "small_proof",
            "main",
            "Run tables 1 to 8 and the figures with a tiny budget; started again, it goes on.",
        ),
        "dynunet": Place(
            "dynunet",
            "main",
            "Train a DynUNet without text on one dataset, segment a list, and score it as every other network here.",
        ),
        "nnunet": Place(
            "nnunet",
            "app",
            "nnU-Net v2 on the same split: convert, plan, train, predict, score. It lives in an environment of its "
            "own.",
        ),
    },
    "Weights and releases": {
        "publish": Place("publish", "main", "Write a checkpoint's weights in half precision."),
        "export": Place(
            "export",
            "main",
            "Export the network of the bundle with its weights, and compare the file's output with the network's own.",
        ),
        "convert": Place(
            "convert",
            "main",
            "Write weights that the bundle loads: decoder, pixel decoder, semantic map and PiGMA from the checkpoint.",
        ),
    },
}
"""Panel -> command -> where it is, in the order of the list."""


@cache
def load(name: str) -> Any:
    """A command as Typer runs it, with its options.

    Args:
        name: of a command in `COMMANDS`.

    Raises:
        KeyError: there is none of that name.
    """
    place = {name: place for panel in COMMANDS.values() for name, place in panel.items()}[name]
    found = getattr(import_module(f"boltzformer.apps.{place.module}"), place.name)
    if not isinstance(found, typer.Typer):
        alone = _typer()
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


class _Loading(TyperGroup):
    """Lists commands by what stands in `COMMANDS`, and loads the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As its parent's; the command is the real one."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(str(name)), rest


def _typer(**settings: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, **settings)


def _only_listed() -> None:
    raise AssertionError("a command was run that had not been loaded")


app = _typer(
    name="boltzformer",
    cls=_Loading,
    help="Text-prompted segmentation of small objects in CT and MR.",
    no_args_is_help=True,
)
for _panel, _places in COMMANDS.items():
    for _name, _place in _places.items():
        app.command(_name, help=_place.line, rich_help_panel=_panel)(_only_listed)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # an output that lacks a letter of a name ends no batch; in JSON, what is written for it is JSON's own
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
