"""`boltzformer info`: this release, its weights, its formats and the terms it has codes for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from boltzformer.apps.console import one_line_errors, plain_console
from boltzformer.apps.release import NAME, bundle_version, shipped_weights, weights_checksum
from boltzformer.bundle_folder import bundle_folder
from boltzformer.inference.formats import output_formats
from boltzformer.recipe import read_recipe
from boltzformer.volumes.segment_codes import coded_terms


def main(
    weights: Annotated[Path | None, typer.Option(help="Checkpoint; the bundle's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what this release is, what its weights were trained with, and what it can write."""
    with one_line_errors():
        content = describe(weights)
    if as_json:
        print(json.dumps(content, indent=4, ensure_ascii=False))
        return
    console = plain_console()
    console.print(f"{NAME} {content['version']}, bundle {content['bundle']}")
    _print_weights(console, content["weights"])
    table = Table("format", "what is written", box=None)
    for name, about in content["formats"].items():
        table.add_row(name, about)
    console.print(table)
    console.print("Terms with a SNOMED CT code:", ", ".join(content["coded_terms"]))


def describe(weights: Path | None = None) -> dict[str, Any]:
    """What `info` tells, as JSON holds it.

    Args:
        weights: a checkpoint; the bundle's by default, which may be absent.

    Raises:
        InputError: the checkpoint that was named is missing, or its recipe is damaged.
    """
    path = weights or shipped_weights()
    known: dict[str, Any] = {"path": str(path), "present": path.is_file()}
    if weights is not None or known["present"]:
        known["sha256"] = weights_checksum(path)
        recipe = read_recipe(path)
        known["trained_with"] = None if recipe is None else recipe.get("input")
        known["trained_on"] = None if recipe is None else recipe.get("trained_on")
    return {
        "name": NAME,
        "version": bundle_version(),
        "bundle": str(bundle_folder()),
        "weights": known,
        "formats": {name: known_format.about for name, known_format in output_formats().items()},
        "coded_terms": coded_terms(),
    }


def _print_weights(console: Console, weights: dict[str, Any]) -> None:
    if not weights["present"]:
        console.print(f"weights: none at {weights['path']}")
        return
    console.print(f"weights: {weights['path']}, SHA-256 {weights['sha256']}")
    for key in ("trained_with", "trained_on"):
        told = json.dumps(weights[key], ensure_ascii=False) if weights[key] else "not stated in the file"
        console.print(f"  {key.replace('_', ' ')}: {told}")
