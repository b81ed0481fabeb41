"""What each network of `configs/` takes in time and memory: one slice with one prompt, segmented and learnt from."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.apps.bundle_config import read_bundle
from boltzformer.bundle_folder import bundle_folder

from scripts.measuring import describe_machine, peak_bytes, print_table, seconds_of, write_figures
from scripts.training_pairs import training_step

NETWORKS = {
    "shipped": [],
    "tiny": ["configs/network/tiny.json"],
    "hiera_s": ["configs/network/hiera_s.json", "configs/paper.json"],
    "hiera_bp": ["configs/network/hiera_bp.json", "configs/paper.json"],
    "focal_l": ["configs/network/focal_l.json", "configs/paper.json"],
    "authors": ["configs/network/authors.json", "configs/paper.json"],
}
"""Name -> overlays of train.json."""
PROMPT = "lung nodule in chest CT"
SHORT_SECONDS, REPEATS = 5.0, 3
"""What takes less is run so many times, and the median counts; what takes longer is run once."""


@dataclass
class NetworkCost:
    """One line of the table; a figure is None where the run needed more memory than it was allowed.

    Attributes:
        name: of the network.
        pixels: side of its slices.
        million_weights: of the whole network.
        segment_s: seconds of segmenting it: of processor time, or on a GPU of the clock.
        step_s: seconds of a training step on it: forward, backward, optimizer.
        segment_gb: memory of the process (on a GPU: of its tensors) after segmenting, at its peak, GB of 10^9 bytes.
        step_gb: likewise after the training step.
    """

    name: str
    pixels: int
    million_weights: float
    segment_s: float | None = None
    step_s: float | None = None
    segment_gb: float | None = None
    step_gb: float | None = None


def measure_network(name: str, overlays: Sequence[str], **settings: Any) -> NetworkCost:
    """Build a network as training does, with random weights, and measure it in this process.

    Args:
        name: for the table.
        overlays: of train.json.
        settings: values of the config's keys on top.
    """
    fixed = {"initial_weights": None, "pretrained": False}
    parser = read_bundle(bundle_folder(), list(overlays), {**fixed, **settings}, "train")
    network = parser.get_parsed_content("network")
    device = next(network.parameters()).device
    side = network.image_size[0]
    cost = NetworkCost(name, side, sum(p.numel() for p in network.parameters()) / 1e6)
    image = torch.rand(1, 1, *network.image_size, device=device)
    step = training_step(parser, 1, [PROMPT])

    def segment() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            network.segment(image, [PROMPT])

    try:
        network.eval()
        segment()  # untimed: compiles what is compiled on a first call
        cost.segment_s = _seconds(segment, device)
        cost.segment_gb = _peak_gb(device)
        network.train()
        cost.step_s = _seconds(step, device)
        cost.step_gb = _peak_gb(device)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
    return cost


def networks(
    only: Annotated[list[str] | None, typer.Option(help=f"one of {', '.join(NETWORKS)}; repeatable; all")] = None,
    memory_gb: Annotated[float, typer.Option(help="what a network may take; one that needs more gives no figure")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time and memory of each network, one after another, each in a process of its own."""
    chosen = only or list(NETWORKS)
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: is no network; choose among {', '.join(NETWORKS)}.")
    if child:
        if memory_gb:
            limit = int(memory_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        print(json.dumps(asdict(measure_network(chosen[0], NETWORKS[chosen[0]]))))
        return
    costs = []
    for name in chosen:
        command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "networks", "--child"]
        done = subprocess.run(
            [*command, "--only", name, "--memory-gb", str(memory_gb)], stdout=subprocess.PIPE, text=True, check=True
        )
        costs.append(NetworkCost(**json.loads(done.stdout.splitlines()[-1])))
        print(costs[-1], file=sys.stderr)
    machine = describe_machine()
    _show(costs, machine)
    if output is not None:
        write_figures(output, machine, costs)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    first = seconds_of(run, device)
    return (
        first
        if first > SHORT_SECONDS
        else statistics.median([first, *(seconds_of(run, device) for _ in range(REPEATS - 1))])
    )


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_bytes() / 1e9


def _show(costs: Sequence[NetworkCost], machine: dict[str, str]) -> None:
    titles = ("network", "px", "M weights", "segment, s", "GB", "training step, s", "GB")
    table = Table(*titles, title="One slice with one prompt")
    for cost in costs:
        figures = (cost.segment_s, cost.segment_gb, cost.step_s, cost.step_gb)
        told = ["too large" if figure is None else f"{figure:.3g}" for figure in figures]
        table.add_row(cost.name, str(cost.pixels), f"{cost.million_weights:.0f}", *told)
    print_table(table, machine)
