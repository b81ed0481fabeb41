"""Convert a checkpoint in the layout of the BoltzFormer authors' code to one that this network loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from boltzformer.errors import InputError
from boltzformer.networks.authors_checkpoint import convert_checkpoint


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a .safetensors or torch file; a dict below "model" or "state_dict" is taken out.

    Raises:
        InputError: the file is absent or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"{path} not found.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions
        raise InputError(f"{path} cannot be read as a checkpoint ({error}).") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path} holds no state dict of tensors.")
    return loaded


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' checkpoint: .pt, .pth or .safetensors")],
    output: Annotated[Path, typer.Argument(help="Where to write the converted weights (.pt)")],
) -> None:
    """Write the decoder, pixel decoder, semantic map and PiGMA in this network's keys; say what was left out."""
    console = Console()
    try:
        weights = read_weights(checkpoint)
        converted, left = convert_checkpoint(weights)
        if not converted:
            raise InputError(f"{checkpoint} holds none of the authors' decoder keys, such as {next(iter(weights))!r}.")
    except InputError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(converted, output)
    console.print(f"{len(converted)} tensors written to {output}; {len(left)} left out.")
    if left:
        groups = sorted({key.split(".")[0] for key in left})
        console.print(
            f"Left out, below: {', '.join(groups)}. Give backbone and text weights to the encoders' `weights`."
        )


if __name__ == "__main__":
    typer.run(main)
