"""What a whole volume costs, phase by phase, against the unhurried path and against DynUNet, with the bars."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from monai.inferers import SliceInferer
from monai.networks.nets import DynUNet
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.cpu import cpu_has_bfloat16
from boltzformer.data.windows import IntensityWindow
from boltzformer.inference.api import Segmenter
from boltzformer.inference.precision import Precision
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.image_encoder import ImageEncoder
from boltzformer.networks.text_encoder import ClipTextEncoder
from boltzformer.volumes.sources import open_volume

from scripts.measuring import describe_machine, multiply_adds, print_table
from scripts.volume_case import PHASES, VolumeRun, run_volume, segmenter_of, write_ct

ORGANS = ("mandible", "brainstem", "left parotid gland", "spinal cord", "larynx", "right parotid gland", "esophagus")
PROMPTS = [f"{organ} in head and neck CT" for organ in (*ORGANS, "thyroid gland", "oral cavity", "left cochlea")]
_ALONE = "float32, 1 prompt: "
DYNUNET_FILTERS = (32, 64, 128, 256, 320, 320)


@dataclass
class Bar:
    """A figure and what it has to be.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: of the figure.
        must: has to be reached; None where nothing is asked.
        aim: is hoped for.
        more_is_better: otherwise less is.
    """

    name: str
    value: float
    unit: str
    must: float | None = None
    aim: float | None = None
    more_is_better: bool = False

    def reaches(self, mark: float | None) -> bool:
        """Whether the figure is as good as a mark."""
        return mark is None or (self.value >= mark if self.more_is_better else self.value <= mark)


def shipped_segmenter(precision: Precision, **settings: Any) -> Segmenter:
    """The bundle's network and weights, with keys of `inference.json`."""
    segmenter = Segmenter.load(precision=precision, keep_logits=False, **settings)
    segmenter.inferer.progress = False
    return segmenter


def paper_network() -> BoltzFormer:
    """Hiera-S at 1024 px, d = 256, m = 10, CLIP-like text encoder; random weights."""
    torch.manual_seed(0)
    network = BoltzFormer(ImageEncoder("sam2_hiera_small"), ClipTextEncoder()).eval().requires_grad_(False)
    return network.cuda() if torch.cuda.is_available() else network


@torch.no_grad()
def volume(
    slices: Annotated[int, typer.Option(help="slices of the volume")] = 300,
    size: Annotated[int, typer.Option(help="height and width of a slice")] = 512,
    sample: Annotated[int, typer.Option(help="slices for what is measured by the slice")] = 16,
    repeats: Annotated[int, typer.Option(help="alternating runs of what is measured by the slice; medians")] = 3,
    paper: Annotated[bool, typer.Option(help="also the paper's network")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """A CT from file to masks with the shipped network; the network is in memory and warm."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_ct(Path(folder) / "ct.nii.gz", size, slices)
        runs = _whole_volumes(file, Path(folder))
        if paper and torch.cuda.is_available():
            runs.append(_paper_volume(file, Path(folder)))
    bars = _bars_of_runs(runs, slices)
    bars += _bars_by_slice(size, sample, repeats)
    if paper:
        bars += _bars_of_paper(size, repeats)
    rate = _gmac_per_second(torch.float32)
    gmac = _gmac_of_a_slice(size)
    bars.append(Bar("floor: multiply-adds of the network at the cores' rate, 1 prompt", gmac * slices / rate, "s"))
    machine = {**describe_machine(), "float32": f"{rate:.0f} GMAC/s", "a slice": f"{gmac:.2f} GMAC"}
    _show(f"{size} x {size} x {slices}", runs, bars, machine)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        told = {"machine": machine, "runs": [asdict(run) for run in runs], "bars": [asdict(bar) for bar in bars]}
        output.write_text(json.dumps(told, indent=4) + "\n")


def _whole_volumes(file: Path, folder: Path) -> list[VolumeRun]:
    """By precision, with the recipe's coarse pass and without one, for some numbers of prompts."""
    runs = []
    for precision in _precisions():
        for looks, settings in (("", {}), (", every slice", {"coarse_mm": 0.0})):
            segmenter = shipped_segmenter(precision, **settings)
            _warm(segmenter)
            for count in (1, 4, 10) if precision == "float32" else (1,):
                name = f"{precision}{looks}, {count} prompt{'s' if count > 1 else ''}"
                runs.append(run_volume(segmenter, file, PROMPTS[:count], name, folder))
            if precision == "float32" and not looks:
                # what a prompt costs depends on where its object can be, and on whether the network knows its name
                runs += [run_volume(segmenter, file, [text], f"{_ALONE}{text}", folder) for text in PROMPTS[1:]]
    return runs


def _paper_volume(file: Path, folder: Path) -> VolumeRun:
    segmenter = segmenter_of(paper_network(), precision="bfloat16", memory_gb=40.0)
    _warm(segmenter)
    return run_volume(segmenter, file, PROMPTS[:1], "paper's network, bfloat16, 1 prompt", folder)


def _bars_of_runs(runs: Sequence[VolumeRun], slices: int) -> list[Bar]:
    named = {run.name: run for run in runs}
    share = slices / 300 / 3  # of the bar for 512 px: the shipped network works at 256 px
    bars = []
    for looks in ("", ", every slice"):
        one, many = (named[f"float32{looks}, {prompts}"] for prompts in ("1 prompt", "10 prompts"))
        bars += [
            Bar(f"1 prompt{looks}, from file to mask", one.total, "s", 60 * share, 30 * share),
            Bar("the same, memory of the whole process", one.resident_gb, "GB", 2.0, 1.5),
            Bar(f"10 prompts{looks}, time of 1 prompt", many.total / one.total, "x", 2.0, 1.5),
            Bar(f"time outside the network{looks}, 1 prompt", 100 * one.outside, "%", 15, 5),
        ]
    alone = [named["float32, 1 prompt"].total, *(run.total for run in runs if run.name.startswith(_ALONE))]
    together = named["float32, 10 prompts"].total
    bars.append(Bar("10 prompts, time of one of the ten alone, mean", together / statistics.mean(alone), "x", 2.0, 1.5))
    paper = [run for run in runs if run.name.startswith("paper")]
    return bars + [
        Bar("paper's network, 1 prompt", run.total, "s", 5 * slices / 300, 2 * slices / 300) for run in paper
    ]


def _bars_by_slice(size: int, sample: int, repeats: int) -> list[Bar]:
    """The shipped network on some slices, against its unhurried path and against DynUNet."""
    image = _sample(size, sample)
    segmenters = {precision: shipped_segmenter(precision) for precision in (*_precisions(), "plain")}

    def segment(precision: Precision, prompts: Sequence[str]) -> Tensor:
        made = segmenters[precision]
        return made.inferer(image, made.network, prompts=prompts)

    masks = {precision: segment(precision, PROMPTS) > 0 for precision in segmenters}  # of ranks
    peer = dynunet().to(image.device)
    by_slice = SliceInferer(roi_size=(size, size), sw_batch_size=1, spatial_dim=2)
    tasks: dict[str, Callable[[], Any]] = {name: partial(segment, name, PROMPTS[:4]) for name in segmenters}
    seconds = _alternating({**tasks, "DynUNet": lambda: by_slice(image, peer)}, repeats)
    each = {name: 1000 * value / sample for name, value in seconds.items()}
    bars = [Bar(f"a slice with 4 prompts, {name}", value, "ms") for name, value in each.items()]
    bars.append(Bar("4 prompts, faster than the plain path", each["plain"] / each["float32"], "x", more_is_better=True))
    bars.append(
        Bar("4 prompts, faster than DynUNet at the slice's size", each["DynUNet"] / each["float32"], "x", 4, 8, True)
    )
    for name in _precisions():
        dice = _least_dice(masks[name], masks["plain"])
        bars.append(Bar(f"least Dice of {name} with the plain path", dice, "", 0.998, None, True))
    return bars


def _bars_of_paper(size: int, repeats: int) -> list[Bar]:
    network = paper_network()
    image = _sample(size, 2)
    runs: dict[str, Callable[[], Any]] = {}
    for precision in ("plain", *_precisions()):
        inferer = PromptedSliceInferer(PROMPTS[0], precision=precision, memory_gb=40.0, progress=False)
        runs[precision] = partial(inferer, image, network)
    each = {name: value / 2 for name, value in _alternating(runs, repeats).items()}
    bars = [Bar(f"paper's network at 1024 px, a slice, {name}", 1000 * value, "ms") for name, value in each.items()]
    best = min(value for name, value in each.items() if name != "plain")
    return [*bars, Bar("paper's network, faster than plain float32", each["plain"] / best, "x", 2, 4, True)]


def dynunet() -> DynUNet:
    """nnU-Net's 2D network with 4 classes and background."""
    strides, kernels = [1, 2, 2, 2, 2, 2], [3] * 6
    made = DynUNet(2, 1, 5, kernels, strides, strides[1:], filters=list(DYNUNET_FILTERS))
    return made.eval().requires_grad_(False)


def _precisions() -> tuple[Precision, ...]:
    return ("float32", "bfloat16") if torch.cuda.is_available() or cpu_has_bfloat16() else ("float32",)


def _sample(size: int, slices: int) -> Tensor:
    """Slices of the sample CT, (1, 1, size, size, slices) in [0, 1]."""
    with tempfile.TemporaryDirectory() as folder:
        voxels = open_volume(write_ct(Path(folder) / "ct.nii.gz", size, slices)).voxels
    image = IntensityWindow("soft tissue")(torch.from_numpy(np.ascontiguousarray(voxels)))[None, None]
    return image.cuda() if torch.cuda.is_available() else image


def _warm(segmenter: Segmenter) -> None:
    """Compile, convert and allocate what the first volume would pay for."""
    segmenter.inferer(_sample(128, 9), segmenter.network, prompts=PROMPTS[:1])


def _alternating(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn after one untimed run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def _least_dice(ours: Tensor, plain: Tensor) -> float:
    """Of the prompts that either finds.

    Raises:
        ValueError: none is found, or one is found everywhere: masks that say nothing.
    """
    ours, plain = ours.flatten(2)[0], plain.flatten(2)[0]
    if not bool(plain.any()) or bool(plain.all(1).any()):
        raise ValueError("the plain path's masks are empty or full: nothing can be compared with them")
    both, total = (ours & plain).sum(1), ours.sum(1) + plain.sum(1)
    return float((2 * both / total)[total > 0].min())


def _gmac_of_a_slice(size: int) -> float:
    """Of the plain form: the counter does not know fused operations."""
    network: Any = shipped_segmenter("plain").network.requires_grad_(False)
    image = torch.rand(1, 1, size, size, device=next(network.parameters()).device)
    return multiply_adds(lambda: network.predict(image, PROMPTS[:1])) / 1e9


def _gmac_per_second(dtype: torch.dtype, side: int = 1536) -> float:
    """What the machine multiplies in a square matrix product."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.rand(side, side, dtype=dtype, device=device)
    return side**3 / _alternating({"product": lambda: matrix @ matrix}, 5)["product"] / 1e9


def _show(title: str, runs: Sequence[VolumeRun], bars: Sequence[Bar], machine: dict[str, str]) -> None:
    phases = Table("seconds", "total", *PHASES, "outside", "GB", "GB on GPU", title=title)
    for run in runs:
        times = [f"{run.seconds.get(phase, 0):.2f}" for phase in PHASES]
        memory = [f"{run.resident_gb:.2f}", f"{run.device_gb:.2f}" if run.device_gb else "-"]
        phases.add_row(run.name, f"{run.total:.1f}", *times, f"{100 * run.outside:.0f} %", *memory)
    Console(width=150).print(phases)
    table = Table("measured", "found", "must", "aim")
    for bar in bars:
        marks = ["-" if mark is None else f"{mark:.4g} {bar.unit}" for mark in (bar.must, bar.aim)]
        colour = "white" if bar.must is None else "green" if bar.reaches(bar.must) else "red"
        table.add_row(bar.name, f"[{colour}]{bar.value:.4g} {bar.unit}[/]", *marks)
    print_table(table, machine, width=150)
