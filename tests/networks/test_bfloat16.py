"""A trained network segments alike in bfloat16 and in float32."""

from __future__ import annotations

import pytest
import torch
from boltzformer.data.phantom_anatomy import make_phantom
from boltzformer.networks.boltzformer import BoltzFormer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from torch import Tensor

PROMPTS = {2: "aorta in chest CT", 3: "liver in chest CT"}


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    """Phantom slices with an aorta and a liver: images (S, 1, 128, 128) in [0, 1], masks (S, 2, 1, 128, 128)."""
    image, label, _ = make_phantom((128, 128, 24), seed=0)
    volume, truth = torch.from_numpy(image).float(), torch.from_numpy(label).int()
    chosen = [z for z in range(24) if all((truth[..., z] == value).sum() > 30 for value in PROMPTS)]
    images = torch.stack([(volume[None, ..., z] + 160) / 400 for z in chosen]).clamp(0, 1)
    masks = torch.stack([torch.stack([(truth[None, ..., z] == value).float() for value in PROMPTS]) for z in chosen])
    return images, masks


@pytest.fixture(scope="module")
def trained(make_network, examples) -> BoltzFormer:
    """A small network that has learned these slices."""
    network = make_network(image_size=128).train()
    optimizer, loss = torch.optim.AdamW(network.parameters(), 1e-3), DiceCELoss(sigmoid=True)
    images, masks = examples
    for step in range(80):
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:3]
        optimizer.zero_grad()
        loss(network(images[chosen], [*PROMPTS.values()] * 3), masks[chosen].flatten(0, 1)).backward()
        optimizer.step()
    return network.eval()


def test_dice_in_bfloat16_is_that_in_float32(trained, examples):
    images, masks = examples[0], examples[1].flatten(0, 1)
    prompts = [*PROMPTS.values()] * len(images)
    with torch.no_grad():
        exact = trained(images, prompts)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = trained(images, prompts)
    assert not torch.equal(exact, rounded)
    dice = [compute_dice((logits > 0).float(), masks).mean().item() for logits in (exact, rounded)]
    assert dice[0] > 0.7  # it found the objects: agreement on nothing says nothing
    assert abs(dice[0] - dice[1]) <= 0.005
