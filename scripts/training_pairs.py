"""How many pairs of slice and prompt a training learns from in a second of one core, change by change."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.bundle_folder import bundle_folder

from scripts.measuring import describe_machine, print_table, seconds_of, write_figures

PROMPTS = [f"{organ} in head and neck CT" for organ in ("mandible", "brainstem", "esophagus", "larynx")]
PAIRS = 16  # of a step, however they are shared out
WINDOWS = "network_def#image_encoder#window_sizes"
STAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "one prompt a slice, float32, TinyViT's own windows": (1, {"cpu_bfloat16": False, WINDOWS: None}),
    "windows that fit 256 px": (1, {"cpu_bfloat16": False}),
    "four prompts a slice": (4, {"cpu_bfloat16": False}),
    "bfloat16, where the CPU has it": (4, {}),
}
"""Name -> prompts a slice, and what differs from train.json; each keeps what the one before brought."""


@dataclass
class Stage:
    """One line of the table.

    Attributes:
        name: what was changed.
        seconds: processor time of a step, the median.
        pairs_per_second: of a core.
        faster: than the first stage, the median over steps that took turns.
    """

    name: str
    seconds: float
    pairs_per_second: float
    faster: float


def training_step(parser: Any, slices: int, prompts: list[str]) -> Callable[[], None]:
    """A step of training as a config sets it up: forward, loss, backward, optimizer.

    Args:
        parser: of train.json with its overlays.
        slices: of a batch; noise, each with a square to find.
        prompts: asked for in each slice.
    """
    network = parser.get_parsed_content("network").train()
    device = next(network.parameters()).device
    size = network.image_size
    image = torch.rand(slices, 1, *size, device=device)
    label = torch.zeros(slices * len(prompts), 1, *size, device=device)
    label[..., : size[0] // 8, : size[1] // 8] = 1
    optimizer = parser.get_parsed_content("optimizer")
    inferer, loss = parser.get_parsed_content("train#inferer"), parser.get_parsed_content("loss")

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(inferer(image, network, prompts * slices), label)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pairs(
    repeats: Annotated[int, typer.Option(min=1, help="rounds in which each form takes its turn")] = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """Training of the shipped network at 256 px on one core of the CPU: what each change of the recipe brought."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages = measure(repeats)
    finally:
        torch.set_num_threads(threads)
    machine = describe_machine()
    table = Table("form", f"s for {PAIRS} pairs", "pairs a second", "faster", title="Training step, one core")
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.2f}", f"{stage.pairs_per_second:.1f}", f"{stage.faster:.1f}x")
    print_table(table, machine)
    print(f"{stages[-1].faster:.1f}x the pairs a second of one core (must 2x, aim 4x)")
    if output is not None:
        write_figures(output, machine, stages)


def measure(repeats: int) -> list[Stage]:
    """Steps of every stage in turn, so that a machine that slows down slows all of them."""
    steps = []
    for each, settings in STAGES.values():
        fixed = {"initial_weights": None, "pretrained": False, "device": torch.device("cpu")}
        parser = read_bundle(bundle_folder(), [], {**fixed, **settings}, "train")
        steps.append(training_step(parser, PAIRS // each, PROMPTS[:each]))
        steps[-1]()  # untimed: caches, memory, and what is compiled on a first call
    rounds = [[seconds_of(step, torch.device("cpu")) for step in steps] for _ in range(repeats)]
    made = []
    for i, name in enumerate(STAGES):
        seconds = statistics.median(taken[i] for taken in rounds)
        made.append(Stage(name, seconds, PAIRS / seconds, statistics.median(taken[0] / taken[i] for taken in rounds)))
    return made
