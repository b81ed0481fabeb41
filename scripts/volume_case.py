"""A whole volume from file to masks, timed phase by phase."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Compose, Invertd, Orientationd
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "bundle")]

from boltzformer.data.prompts import Prompt
from boltzformer.data.windows import IntensityWindowd
from boltzformer.inference.api import Segmentation, Segmenter
from boltzformer.inference.existence import ExistenceFromMetad
from boltzformer.inference.load import LoadVolumed
from boltzformer.inference.masks import MasksFromLogitsd
from boltzformer.inference.slice_inferer import PromptedSliceInferer, groups_at_once
from boltzformer.volumes.deflate import pack
from boltzformer.volumes.sources import open_volume

from scripts.measuring import peak_bytes

SAMPLE = Path(__file__).resolve().parents[1] / "bundle" / "samples" / "head_neck_ct.nii.gz"
PHASES = ("read", "preprocess", "encode", "decode", "invert", "write")
NOISE_HU = 12.0
OUTSIDE_HU = -1024  # of a scanner's pixels outside its circle


@dataclass
class VolumeRun:
    """What a volume cost.

    Attributes:
        name: what was run.
        seconds: of each of `PHASES`.
        resident_gb: highest memory of the whole process while it ran, libraries and weights included, 1e9 bytes.
        device_gb: highest memory of tensors on a CUDA device; 0 on a CPU.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    resident_gb: float = 0.0
    device_gb: float = 0.0

    @property
    def total(self) -> float:
        """Seconds from the file to the masks' files."""
        return sum(self.seconds.values())

    @property
    def outside(self) -> float:
        """Share of the time that the network does not take."""
        return 1 - (self.seconds["encode"] + self.seconds["decode"]) / self.total


def write_ct(path: Path, size: int, slices: int, seed: int = 0) -> Path:
    """The sample CT (body, couch, mask and air) on a finer grid, with noise and a scanner's circle, as .nii.gz.

    Args:
        path: where to write.
        size: rows and columns.
        slices: number of slices.
        seed: of the noise.
    """
    image: Any = nib.load(SAMPLE)
    coarse = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    shape = (size, size, slices)
    affine = image.affine @ np.diag([old / new for old, new in zip(coarse.shape, shape, strict=True)] + [1])
    across = torch.linspace(-1, 1, size)
    outside = across[:, None] ** 2 + across[None, :] ** 2 > 1
    draw = torch.Generator().manual_seed(seed)
    voxels = np.empty(shape, dtype=np.int16, order="F")
    for k in range(slices):
        place = min(max((k + 0.5) * coarse.shape[2] / slices - 0.5, 0), coarse.shape[2] - 1)
        low, part = int(place), place % 1
        plane = coarse[..., low].lerp(coarse[..., min(low + 1, coarse.shape[2] - 1)], part)
        fine = F.interpolate(plane[None, None], size=(size, size), mode="bilinear")[0, 0]
        fine += NOISE_HU * torch.randn(fine.shape, generator=draw)
        voxels[..., k] = torch.where(outside, torch.tensor(float(OUTSIDE_HU)), fine.clamp(-1024, 3071)).numpy()
    made = nib.Nifti1Image(voxels, affine)
    with open(path, "wb") as file, pack(file) as packed:
        made.to_stream(packed)
    return path


def run_volume(segmenter: Segmenter, path: Path, prompts: Sequence[str], name: str, output: Path) -> VolumeRun:
    """Segment a file as `boltzformer` does, each phase timed.

    Args:
        segmenter: with its network.
        path: of the volume.
        prompts: what to segment.
        name: of the result.
        output: folder for the masks.
    """
    run = VolumeRun(name)
    wanted = [Prompt(text, text.replace(" ", "_")) for text in prompts]
    _forget_peak()
    with _phase(run, "read"):
        volume = open_volume(path, modality="CT")
    with _phase(run, "preprocess"):
        item: dict[str, Any] = dict(segmenter.preprocessing({"image": volume, "modality": "CT", "body_part": ""}))
    with _phase(run, "decode"), _encoding_apart(run, segmenter):
        item["pred"] = segmenter.inferer(item["image"][None], segmenter.network, prompts=wanted)[0]
    run.seconds["decode"] -= run.seconds["encode"]
    with _phase(run, "invert"):
        item = segmenter.finish(item)
    with _phase(run, "write"):
        Segmentation(wanted, item, "volume", volume).save(output, case=name)
    run.resident_gb = peak_bytes() / 1e9
    if torch.cuda.is_available():
        run.device_gb = torch.cuda.max_memory_allocated() / 1e9
    return run


@contextmanager
def _phase(run: VolumeRun, name: str) -> Iterator[None]:
    durations: list[float] = []
    with _timed(durations):
        yield
    run.seconds[name] = durations[0]


@contextmanager
def _timed(durations: list[float]) -> Iterator[None]:
    """Append the seconds that this takes, a device's work included."""
    _settle()
    began = time.perf_counter()
    yield
    _settle()
    durations.append(time.perf_counter() - began)


@contextmanager
def _encoding_apart(run: VolumeRun, segmenter: Segmenter) -> Iterator[None]:
    """Time the image encodings that happen inside; on a CUDA device this waits for each.

    Where several groups are computed at once, what they take together counts by the number of workers.
    """
    computing = segmenter.inferer.computing(segmenter.network)
    encode = computing.encode_image
    durations: list[float] = []  # several threads may append to it

    def timed(image: Tensor, *args: Any) -> Any:
        with _timed(durations):
            return encode(image, *args)

    computing.encode_image = timed
    try:
        yield
    finally:
        del computing.encode_image
    run.seconds["encode"] = sum(durations) / groups_at_once(computing)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux: VmHWM starts again from what is resident now
        Path("/proc/self/clear_refs").write_text("5")


def segmenter_of(network: Any, **settings: Any) -> Segmenter:
    """A segmenter with the bundle's pre- and postprocessing around a network without a checkpoint.

    Args:
        network: in evaluation mode, on its device.
        settings: of `PromptedSliceInferer`.
    """
    load = LoadVolumed("image")
    turn = Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))
    before = Compose([load, turn, IntensityWindowd("image", "auto")])
    results = ("pred", "masks")
    back = Invertd(results, transform=before, orig_keys="image", nearest_interp=True, to_tensor=True)
    after = Compose([ExistenceFromMetad("pred"), MasksFromLogitsd("pred", keep_logits=False), back])
    return Segmenter(network, before, PromptedSliceInferer(progress=False, **settings), after)
