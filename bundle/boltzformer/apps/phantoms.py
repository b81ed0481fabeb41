"""`boltzformer phantoms`: write a set of CT-like phantom volumes in Medical Segmentation Decathlon layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from boltzformer.apps.console import one_line_errors
from boltzformer.data.phantom import write_phantoms


def main(
    out_dir: Annotated[Path, typer.Argument(help="Folder of the set; an older phantom set there is replaced.")],
    training: Annotated[int, typer.Option(help="Number of training volumes.")] = 20,
    validation: Annotated[int, typer.Option(help="Number of validation volumes.")] = 6,
    size: Annotated[tuple[int, int, int], typer.Option(help="Voxels: right, anterior, superior.")] = (
        256,
        256,
        32,
    ),
    seed: Annotated[int, typer.Option(help="The same seed gives the same set.")] = 0,
) -> None:
    """Write CT-like volumes with labelled nodules, aorta and liver, from 0.005 % to 5 % of a slice."""
    with one_line_errors():
        written = write_phantoms(out_dir, training, validation, size, seed)
    Console().print(f"{'Wrote' if written else 'Already there:'} {training} + {validation} volumes in {out_dir}")


if __name__ == "__main__":
    typer.run(main)
