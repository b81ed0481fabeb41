"""`boltzformer publish`: a checkpoint made small enough to ship: half the precision, and all of its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from boltzformer.apps.console import one_line_errors
from boltzformer.errors import InputError
from boltzformer.manifest import sha256_of
from boltzformer.recipe import read_recipe
from boltzformer.weights import network_state, read_checkpoint, save_atomically


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Weights of a training, with their recipe.")],
    output: Annotated[Path, typer.Argument(help="Where to write, for example models/model.pt.")],
) -> None:
    """Write a checkpoint's weights in half precision.

    Matrices and kernels become float16; vectors (norms, biases, running statistics) stay float32, since they are few
    and some are small. Loading gives float32 again.
    """
    with one_line_errors():
        recipe = read_recipe(checkpoint)
        if recipe is None:
            raise InputError(f"{checkpoint}: carries no recipe; train it with this bundle")
        if output.resolve() == checkpoint.resolve():
            raise InputError(f"{output}: is the checkpoint itself; name another file")
        state = {name: halved(value) for name, value in network_state(read_checkpoint(checkpoint)).items()}
        save_atomically(state, output, recipe)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256_of(output)}")


def halved(value: torch.Tensor) -> torch.Tensor:
    """A matrix or kernel in float16; anything else as it is.

    Raises:
        InputError: a number is too large for float16.
    """
    if value.dim() < 2 or not value.is_floating_point():
        return value
    half = value.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise InputError("a weight is too large for half precision; ship the checkpoint as it is")
    return half
