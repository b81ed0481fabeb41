"""A network without text, one output channel for each object of one dataset: nnU-Net's DynUNet as MONAI has it.

For comparison on the same split and time. It sees volumes in patches where BoltzFormer sees slices, and learns one
dataset's objects where BoltzFormer takes any prompt. Objects that a case does not have annotated cost it nothing, as in
the rest of this package; nnU-Net itself would learn them as background.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import CacheDataset, DataLoader, decollate_batch, list_data_collate
from monai.engines import SupervisedTrainer
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    MapTransform,
    Orientationd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandScaleIntensityd,
    Spacingd,
    SpatialPadd,
)
from torch import Tensor, nn

from boltzformer.data.slice_dataset import case_name
from boltzformer.errors import InputError
from boltzformer.training.interruption import Interruption

IGNORED = -1
"""Value of the truth where an object was not annotated."""


@dataclass(frozen=True)
class ClosedSetPlan:
    """What is fixed before training, in nnU-Net's manner: from the training cases alone.

    Attributes:
        objects: label value to name, in channel order.
        spacing: mm of the network's grid along x, y, z in RAS: the median of the cases.
        patch: voxels of a training patch, multiples of what the strides need.
        low, high: HU or grey values that are clipped to: the 0.5th and 99.5th percentile inside objects.
        mean, sd: of the grey values inside objects.
        kernels, strides: of the DynUNet.
    """

    objects: dict[int, str]
    spacing: tuple[float, float, float]
    patch: tuple[int, int, int]
    low: float
    high: float
    mean: float
    sd: float
    kernels: list[list[int]]
    strides: list[list[int]]


def make_plan(cases: Sequence[Mapping[str, Any]], patch: Sequence[int], most: int = 40) -> ClosedSetPlan:
    """Plan a training.

    Args:
        cases: training cases, see `boltzformer.data.cases.load_cases`.
        patch: voxels wished for; rounded up to what the strides need.
        most: cases that are looked at.

    Raises:
        InputError: cases name other labels than the first one, or none has a voxel of any object.
    """
    objects = dict(sorted(cases[0]["objects"].items()))
    if odd := next((case for case in cases if dict(case["objects"]) != objects), None):
        raise InputError(f"{odd['image']}: names other labels than the first case; train one network for each list.")
    load = _load(("image", "label"))
    spacings, inside = [], []
    for case in cases[:most]:
        item = load({key: case[key] for key in ("image", "label")})
        spacings.append(np.asarray(item["image"].pixdim, dtype=np.float64))
        values = item["image"].numpy()[np.isin(item["label"].numpy(), list(objects))]
        inside.append(values[:: max(1, len(values) // 10000)])
    grey = np.concatenate(inside)
    if not len(grey):
        raise InputError(f"{cases[0]['image']}: neither it nor the next {most} training cases hold a labelled voxel.")
    spacing = np.median(spacings, axis=0)
    kernels, strides, steps = _topology(patch, spacing)
    low, high = np.percentile(grey, [0.5, 99.5])
    x, y, z = (int(-(-size // step) * step) for size, step in zip(patch, steps, strict=True))
    mean, sd = float(grey.mean()), float(max(grey.std(), 1e-6))
    places = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return ClosedSetPlan(objects, places, (x, y, z), float(low), float(high), mean, sd, kernels, strides)


def _topology(patch: Sequence[int], spacing: np.ndarray) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Halve the axes that are long and fine enough, level by level, as nnU-Net does; at most 5 times."""
    size, spacing = np.array(patch), np.array(spacing)
    steps = np.ones(3, int)
    kernels, strides = [], [[1, 1, 1]]
    while True:
        kernels.append([3 if space <= 2 * spacing.min() else 1 for space in spacing])
        stride = np.where((spacing <= 2 * spacing.min()) & (size >= 8), 2, 1)
        if np.all(stride == 1) or len(strides) == 6:
            return kernels, strides, steps
        size, spacing, steps = -(-size // stride), spacing * stride, steps * stride
        strides.append([int(one) for one in stride])


def make_network(plan: ClosedSetPlan, first_filters: int = 32) -> DynUNet:
    """The DynUNet of a plan, a channel for each object.

    Args:
        plan: the plan.
        first_filters: at full resolution; each level doubles them, to 320 at most.
    """
    filters = [min(first_filters * 2**level, 320) for level in range(len(plan.strides))]
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(plan.objects),
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=filters,
    )


class ObjectChannelsd(MapTransform):
    """Dictionary transform: label map (1, ...) -> a channel for each object of 0 and 1, `IGNORED` where not annotated.

    Args:
        keys: label maps.
        plan: says the objects.
    """

    def __init__(self, keys: KeysCollection, plan: ClosedSetPlan) -> None:
        super().__init__(keys)
        self.values = list(plan.objects)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Of one item; its `annotated` says which absent objects are negatives."""
        item = dict(data)
        for key in self.key_iterator(item):
            label = item[key]
            channels = torch.cat([(label == value).float() for value in self.values])
            for channel, value in zip(channels, self.values, strict=True):
                if value not in item.get("annotated", ()) and not channel.any():
                    channel.fill_(IGNORED)
            item[key] = channels
        return item


class Greyd(MapTransform):
    """Dictionary transform: clip to a plan's range, then subtract its mean and divide by its standard deviation."""

    def __init__(self, keys: KeysCollection, plan: ClosedSetPlan) -> None:
        super().__init__(keys)
        self.plan = plan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Of one item."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = (item[key].clamp(self.plan.low, self.plan.high) - self.plan.mean) / self.plan.sd
        return item


class AnnotatedLoss(nn.Module):
    """Dice and cross-entropy of each channel by itself, over the channels that are annotated."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, reduction="none")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Logits and truth (B, C, X, Y, Z); truth is `IGNORED` throughout a channel that does not count."""
        logits = logits.float()
        counts = (truth.flatten(2)[..., 0] != IGNORED).float()
        truth = truth.clamp(min=0)
        dice = self.dice(logits, truth).flatten(2).mean(2)
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(2).mean(2)
        return ((dice + entropy) * counts).sum() / counts.sum().clamp(min=1)


def train_for(
    cases: Sequence[Mapping[str, Any]],
    plan: ClosedSetPlan,
    network: nn.Module,
    seconds: float,
    device: torch.device,
    batch_size: int = 2,
    learning_rate: float = 1e-3,
    seed: int = 0,
    most_steps: int | None = None,
) -> list[float]:
    """Train for a time that counts from the first step; reading the volumes into memory comes before.

    Args:
        cases: training cases.
        plan: from `make_plan`.
        network: from `make_network`; changed in place.
        seconds: of training.
        device: where.
        batch_size: patches a step.
        learning_rate: of AdamW at the start; it falls to 0 over the time, as nnU-Net's does over its epochs.
        seed: of patches and augmentation.
        most_steps: end after as many, also before the time is over.

    Returns:
        the loss of each step.
    """
    transform = _training_transform(plan, batch_size)
    transform.set_random_state(seed=seed)
    dataset = CacheDataset(list(cases), transform, num_workers=0, progress=False)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=0, generator=order)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=10**6,
        train_data_loader=loader,
        network=network.to(device),
        optimizer=optimizer,
        loss_function=AnnotatedLoss(),
        amp=device.type == "cuda",
        decollate=False,
    )
    interruption, begun = Interruption(), time.monotonic()

    def after_step(engine: Engine) -> None:
        losses.append(float(engine.state.output["loss"].detach()))  # type: ignore[call-overload, index]
        done = (time.monotonic() - begun) / seconds
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * max(1 - done, 0.0) ** 0.9
        if done >= 1 or len(losses) == most_steps or interruption.signal:
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
    interruption.watch()
    trainer.run()
    interruption.forget()
    return losses


@torch.no_grad()
def predict_cases(
    cases: Sequence[Mapping[str, Any]], plan: ClosedSetPlan, network: nn.Module, device: torch.device, folder: Path
) -> list[Path]:
    """Segment cases and write `CASE.nii.gz` label maps with the dataset's own values, on each image's own grid.

    Args:
        cases: with `image`.
        plan: of the training.
        network: trained.
        device: where.
        folder: of the label maps.

    Returns:
        the files.
    """
    preprocess = Compose([_load(("image",)), *_grid(("image",), plan), Greyd("image", plan)])
    restore = Invertd("pred", preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)
    inferer = SlidingWindowInferer(plan.patch, sw_batch_size=1, overlap=0.5, mode="gaussian")
    values = torch.tensor(list(plan.objects))
    network.to(device).eval()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for case in cases:
        batch = list_data_collate([preprocess({"image": case["image"]})])
        batch["pred"] = inferer(batch["image"].to(device), network).cpu()
        found = restore(decollate_batch(batch)[0])["pred"]
        best = found.as_tensor().max(0)
        label = torch.where(best.values > 0, values[best.indices], 0)
        kind = np.uint8 if max(plan.objects) < 256 else np.uint16
        image = nib.Nifti1Image(label.numpy().astype(kind), np.asarray(found.affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        written.append(folder / f"{case_name(case)}.nii.gz")
        nib.save(image, written[-1])
    return written


def _load(keys: Sequence[str]) -> Compose:
    return Compose([LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None)])


def _grid(keys: Sequence[str], plan: ClosedSetPlan) -> list[Any]:
    modes = ["bilinear" if key == "image" else "nearest" for key in keys]
    return [Spacingd(keys, pixdim=plan.spacing, mode=modes, padding_mode="border")]


def _training_transform(plan: ClosedSetPlan, patches: int) -> Compose:
    both = ("image", "label")
    # no flips: left and right organs are different objects
    turn = {"rotate_range": (0.1, 0.1, 0.25), "scale_range": (0.15, 0.15, 0.15), "padding_mode": "border"}
    return Compose(
        [
            _load(both),
            *_grid(both, plan),
            Greyd("image", plan),
            ObjectChannelsd("label", plan),
            SpatialPadd(both, plan.patch, mode="edge"),
            RandCropByPosNegLabeld(both, "label", plan.patch, pos=2, neg=1, num_samples=patches, allow_smaller=False),
            RandAffined(both, prob=0.3, mode=("bilinear", "nearest"), **turn),
            RandScaleIntensityd("image", factors=0.15, prob=0.3),
            RandGaussianNoised("image", prob=0.2, std=0.1),
        ]
    )
