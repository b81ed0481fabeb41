"""A network without text, one output channel for each object of one dataset: nnU-Net's DynUNet as MONAI has it.

For comparison on the same split and time. It sees volumes in patches where BoltzFormer sees slices, and learns one
dataset's objects where BoltzFormer takes any prompt. Objects that a case does not have annotated cost it nothing, as in
the rest of this package; nnU-Net itself would learn them as background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader, decollate_batch, list_data_collate
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceLoss
from monai.transforms import (
    CastToTyped,
    Compose,
    Invertd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandGaussianNoised,
    RandScaleIntensityd,
    SpatialPadd,
)
from torch import Tensor, nn

from boltzformer.data.case_prompts import case_name
from boltzformer.training.closed_set_plan import (
    IGNORED,
    ClosedSetPlan,
    CountedObjectsd,
    Greyd,
    ObjectChannelsd,
    read_volumes,
    to_grid,
)

_TOLD_EVERY = 100


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


class BFloat16Inferer(SimpleInferer):
    """MONAI inferer: the network under autocast to bfloat16 on a CPU, where MONAI's `amp` is for CUDA."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits of a batch; weights and loss stay float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs)


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
    clock: Callable[[], float] = time.monotonic,
    bfloat16: bool = False,
    say: Callable[[str], None] = lambda line: None,
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
        clock: tells the time in seconds; `time.process_time` counts the processor's, so that a busy machine takes
            nothing away.
        bfloat16: compute the network in it on a CPU.
        say: gets a line every hundred steps.

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
        inferer=BFloat16Inferer() if bfloat16 else SimpleInferer(),
        amp=device.type == "cuda",
        decollate=False,
    )
    begun = clock()

    def after_step(engine: Engine) -> None:
        losses.append(float(engine.state.output["loss"].detach()))  # type: ignore[index]
        done = (clock() - begun) / seconds
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * max(1 - done, 0.0) ** 0.9
        if done >= 1 or len(losses) == most_steps:
            engine.terminate()
        if len(losses) % _TOLD_EVERY == 0:
            say(f"{min(done, 1):.0%} of the time, {len(losses)} steps, loss {np.mean(losses[-_TOLD_EVERY:]):.3f}")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
    trainer.run()
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
    preprocess = Compose([read_volumes(("image",)), *to_grid(("image",), plan), Greyd("image", plan)])
    restore = Invertd("pred", preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)
    inferer = SlidingWindowInferer(plan.patch, sw_batch_size=1, overlap=0.5, mode="gaussian")
    values = torch.tensor(list(plan.objects))
    network.to(device).eval()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for case in cases:
        batch = list_data_collate([preprocess({"image": case["image"]})])
        batch["pred"] = cast(Tensor, inferer(batch["image"].to(device), network)).cpu()
        found = restore(decollate_batch(batch)[0])["pred"]
        best = found.as_tensor().max(0)
        label = torch.where(best.values > 0, values[best.indices], 0)
        kind = np.uint8 if max(plan.objects) < 256 else np.uint16
        image = nib.Nifti1Image(label.numpy().astype(kind), np.asarray(found.affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        written.append(folder / f"{case_name(case)}.nii.gz")
        nib.save(image, written[-1])
    return written


def _training_transform(plan: ClosedSetPlan, patches: int) -> Compose:
    both = ("image", "label")
    # no flips: left and right organs are different objects
    turn: dict[str, Any] = {
        "rotate_range": (0.1, 0.1, 0.25),
        "scale_range": (0.15, 0.15, 0.15),
        "padding_mode": "border",
    }
    return Compose(
        [
            # one flat list: a Compose within counts as random to CacheDataset, which would then keep nothing
            *read_volumes(both).transforms,
            *to_grid(both, plan),
            Greyd("image", plan),
            CountedObjectsd("label", plan),
            # labels stay one small map until a patch is left of them: the cases lie in memory up to here
            CastToTyped("label", torch.int16),
            SpatialPadd(both, plan.patch, mode="edge"),
            RandCropByPosNegLabeld(both, "label", plan.patch, pos=2, neg=1, num_samples=patches, allow_smaller=False),
            RandAffined(both, prob=0.3, mode=("bilinear", "nearest"), **turn),
            RandScaleIntensityd("image", factors=0.15, prob=0.3),
            RandGaussianNoised("image", prob=0.2, std=0.1),
            ObjectChannelsd("label", plan),
        ]
    )
