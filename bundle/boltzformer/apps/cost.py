"""`boltzformer cost`: what a training takes in GPU hours, slices a second, disk and network, before it is begun."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.apps.console import one_line_errors
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.networks.text_encoder import TextFeatures

TOKENS = 12
"""Of a usual prompt, such as "right kidney in abdominal MRI" with its first and last token."""
PASSES = 3
"""A training step computes a forward pass and, for the backward pass, about twice that."""
BYTES_OF_A_PIXEL = 3
"""In the slice cache: two of the image, one of the label map; before compression."""


@dataclass(frozen=True)
class Cost:
    """Of a whole training.

    Attributes:
        gmac: multiply-adds of one forward pass of a (slice, prompt) pair, in units of 10^9, text tower left out.
        weights: parameters that learn.
        steps: of the optimizer.
        gpu_hours: over all GPUs.
        hours: from start to end.
        pairs_per_second: over all GPUs.
        cache_gb: of all slices.
        read_mb_per_second: from disk over all machines, if nothing stays in memory.
        reduce_gb_per_step: sent and received by each GPU to share gradients, by a ring, in float32.
        checkpoint_gb: weights and the optimizer's two moments.
    """

    gmac: float
    weights: int
    steps: int
    gpu_hours: float
    hours: float
    pairs_per_second: float
    cache_gb: float
    read_mb_per_second: float
    reduce_gb_per_step: float
    checkpoint_gb: float


def count_forward(network: Any, prompts: int = 1) -> float:
    """Multiply-adds of one slice with its prompts on a GPU, in 10^9, for each pair; counted, not run.

    Args:
        network: on any device; nothing of it is changed.
        prompts: of the slice.
    """
    with FakeTensorMode() as mode, torch.no_grad():
        tensors = [*network.named_parameters(), *network.named_buffers()]
        # on a CUDA device that need not be there: what is computed depends on the kind of device
        state = {name: mode.from_tensor(tensor).detach().to("cuda") for name, tensor in tensors}
        tokens = torch.zeros(prompts, TOKENS, network.text_encoder.width, device="cuda")
        mask = torch.ones(prompts, TOKENS, dtype=torch.bool, device="cuda")
        image = torch.zeros(1, 1, *network.image_size, device="cuda")
        with FlopCounterMode(display=False) as counter:
            functional_call(network.train(), state, (image, TextFeatures(tokens, mask, (TOKENS,) * prompts)))
    return counter.get_total_flops() / 2e9 / prompts


def estimate(
    gmac: float,
    weights: int,
    pairs: int,
    epochs: int,
    gpus: int,
    batch: int,
    tflops: float,
    utilisation: float,
    slice_pixels: int,
) -> Cost:
    """Add it up.

    Args:
        gmac: see `Cost`.
        weights: see `Cost`.
        pairs: (slice, prompt) pairs of an epoch.
        epochs: of the training.
        gpus: that share a step.
        batch: pairs of a step over all GPUs.
        tflops: of a GPU at its peak, in the type that is computed in.
        utilisation: share of the peak that is reached, in (0, 1].
        slice_pixels: of a slice as stored.

    Raises:
        InputError: a number out of its range.
    """
    for name, value in (("pairs", pairs), ("epochs", epochs), ("gpus", gpus), ("batch", batch), ("tflops", tflops)):
        if value <= 0:
            raise InputError(f"--{name} is {value}; give more than 0.")
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation is {utilisation}; give a share above 0, up to 1.")
    seconds = pairs * epochs * PASSES * 2 * gmac * 1e9 / (tflops * 1e12 * utilisation)
    rate = gpus * pairs * epochs / seconds
    pair_bytes = slice_pixels * BYTES_OF_A_PIXEL
    return Cost(
        gmac=gmac,
        weights=weights,
        steps=epochs * math.ceil(pairs / batch),
        gpu_hours=seconds / 3600,
        hours=seconds / 3600 / gpus,
        pairs_per_second=rate,
        cache_gb=pairs * pair_bytes / 1e9,
        read_mb_per_second=rate * pair_bytes / 1e6,
        reduce_gb_per_step=2 * 4 * weights * (gpus - 1) / gpus / 1e9,
        checkpoint_gb=3 * 4 * weights / 1e9,
    )


def main(
    overlay: Annotated[list[str] | None, typer.Option(help="On top of train.json; the paper's by default.")] = None,
    pairs: Annotated[int, typer.Option(help="(slice, prompt) pairs of an epoch; `statistics` counts yours.")] = 100_000,
    epochs: Annotated[int, typer.Option(help="40 at most in the paper.")] = 40,
    gpus: Annotated[int, typer.Option(help="32 in the paper.")] = 32,
    batch: Annotated[int, typer.Option(help="Pairs of a step over all GPUs; 12 x 32 in the paper.")] = 384,
    tflops: Annotated[float, typer.Option(help="Peak of a GPU; 312 for an A100 in bfloat16.")] = 312.0,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that is reached; measure it.")] = 0.3,
    slice_pixels: Annotated[int, typer.Option(help="Of a slice as stored.")] = 512 * 512,
) -> None:
    """Count a forward pass and estimate the rest; nothing is run."""
    with one_line_errors():
        overlays = overlay or ["configs/network/hiera_s.json", "configs/paper.json"]
        settings: Mapping[str, Any] = {"pretrained": False, "initial_weights": None, "device": torch.device("cpu")}
        parser = read_bundle(bundle_folder(), overlays, dict(settings), "train")
        network = parser.get_parsed_content("network_def")
        weights = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        gmac = count_forward(network)
        cost = estimate(gmac, weights, pairs, epochs, gpus, batch, tflops, utilisation, slice_pixels)
    table = Table("what", "how much", title=f"{pairs} pairs, {epochs} epochs, {gpus} GPUs at {utilisation:.0%} of peak")
    for name, text in _lines(cost):
        table.add_row(name, text)
    Console().print(table)


def _lines(cost: Cost) -> list[tuple[str, str]]:
    return [
        ("forward pass of a pair, without the text tower", f"{cost.gmac:.1f} GMAC (counted)"),
        ("weights that learn", f"{cost.weights / 1e6:.1f} M (counted)"),
        ("steps", f"{cost.steps}"),
        ("GPU hours", f"{cost.gpu_hours:.1f}"),
        ("hours from start to end", f"{cost.hours:.2f}"),
        ("pairs a second, all GPUs", f"{cost.pairs_per_second:.0f}"),
        ("slice cache, uncompressed", f"{cost.cache_gb:.1f} GB"),
        ("reading, if nothing stays in memory", f"{cost.read_mb_per_second:.0f} MB/s"),
        ("gradients, each GPU and step", f"{cost.reduce_gb_per_step:.2f} GB out and as much in"),
        ("a checkpoint of the run", f"{cost.checkpoint_gb:.2f} GB"),
    ]


if __name__ == "__main__":
    typer.run(main)
