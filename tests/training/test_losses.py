"""The loss against its terms computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from boltzformer.errors import InputError
from boltzformer.networks.boltzformer import BoltzFormer, Decoded
from boltzformer.networks.image_encoder import ImageEncoder
from boltzformer.networks.text_encoder import ClipTextEncoder
from boltzformer.training.losses import DecodedLoss, TrainingInferer
from boltzformer.training.parameters import parameter_groups
from monai.losses import DiceCELoss

from tests.support import small_network

MASK_LOSS = DiceCELoss(sigmoid=True, squared_pred=True)


@pytest.fixture
def found():
    torch.manual_seed(0)
    grids = [(2, 2), (4, 4)]
    return Decoded(
        torch.randn(3, 1, 16, 16), torch.randn(3), torch.zeros(3, 4, 8), torch.zeros(3, 4, 8, 8),
        tuple(torch.randn(3, 4, *grid) for grid in grids),
    )  # fmt: skip


@pytest.fixture
def label():
    masks = torch.zeros(3, 1, 16, 16)
    masks[0, 0, 3:6, 2:9] = masks[2, 0, 10:, 10:] = 1
    return masks


def test_masks_alone_are_the_papers_loss(found, label):
    loss = DecodedLoss(MASK_LOSS)
    assert not loss.needs_everything
    expected = MASK_LOSS(found.logits, label)
    assert loss(found.logits, label) == expected
    assert loss(found, label) == expected


def test_layers_add_the_mean_of_their_mean_masks(found, label):
    loss = DecodedLoss(MASK_LOSS, layer_loss_weight=0.3)
    terms = [
        MASK_LOSS(masks.mean(1, keepdim=True), F.avg_pool2d(label, 16 // masks.shape[-1]))
        for masks in found.layer_masks
    ]
    assert loss(found, label) == pytest.approx(float(MASK_LOSS(found.logits, label) + 0.3 * sum(terms) / 2), rel=1e-6)


def test_with_existence_masks_are_learned_where_the_object_is(found, label):
    loss = DecodedLoss(MASK_LOSS, existence_weight=2.0)
    there = [0, 2]
    masks = sum(MASK_LOSS(found.logits[i : i + 1], label[i : i + 1]) for i in there) / 2
    score = F.binary_cross_entropy_with_logits(found.existence, torch.tensor([1.0, 0.0, 1.0]))
    assert loss(found, label) == pytest.approx(float(masks + 2 * score), rel=1e-6)
    assert loss(found, label * 0) == pytest.approx(
        float(2 * F.binary_cross_entropy_with_logits(found.existence, torch.zeros(3))), rel=1e-6
    )


def test_bad_weights_and_a_network_without_the_head_are_refused(found, label):
    with pytest.raises(InputError, match="0 or more"):
        DecodedLoss(MASK_LOSS, layer_loss_weight=-1)
    headless = Decoded(found.logits, None, found.queries, found.query_masks)
    with pytest.raises(InputError, match="existence head"):
        DecodedLoss(MASK_LOSS, existence_weight=1)(headless, label)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    small = {"image_size": 64, "dim": 32, "num_heads": 4, "feedforward_dim": 64, "encoder_layers": 1, "num_queries": 3}
    text = ClipTextEncoder(layers=1, width=32, heads=2)
    return BoltzFormer(ImageEncoder("tiny_vit_5m_224"), text, **small, existence=True)


def test_inferer_asks_for_no_more_than_the_loss_needs(network, label):
    image = torch.rand(1, 1, 16, 16)
    network.train()
    assert isinstance(TrainingInferer(DecodedLoss(MASK_LOSS))(image, network, text=["a", "b"]), torch.Tensor)
    loss = DecodedLoss(MASK_LOSS, 0.1, 1.0)
    found = TrainingInferer(loss)(image, network, text=["a", "b"])
    loss(found, label[:2]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_bfloat16_on_a_cpu_gives_nearly_the_loss_of_float32_and_trains(network, label):
    network = copy.deepcopy(network)
    image, prompts = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)), ["a", "b"]
    masks = F.interpolate(label[:2], size=(64, 64))
    network.train()
    loss = DecodedLoss(MASK_LOSS, 0.1, 1.0)
    losses = []
    for cpu_bfloat16 in (False, True):
        torch.manual_seed(1)  # the same draw
        found = TrainingInferer(loss, cpu_bfloat16)(image, network, text=prompts)
        assert found.logits.dtype == torch.float32
        losses.append(loss(found, masks).item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(15):
        optimizer.zero_grad()
        step = loss(TrainingInferer(loss, True)(image, network, text=prompts), masks)
        step.backward()
        optimizer.step()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert step.item() < 0.8 * losses[1]


def test_groups_and_a_part_that_learns_alone(network):
    groups = parameter_groups(network, 1e-5)
    assert groups[1]["lr"] == 1e-5
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    (alone,) = parameter_groups(network, 1e-5, "existence")
    assert {id(p) for p in alone["params"]} == {id(p) for p in network.existence.parameters()}
    assert not next(network.decoder.parameters()).requires_grad
    with pytest.raises(InputError, match="no part 'nothing'"):
        parameter_groups(network, 1e-5, "nothing")
    network.requires_grad_(True)


@pytest.mark.parametrize("only", ["existence", "image_encoder"])
def test_masks_stay_where_the_score_learns_alone(only):
    network = small_network(**{"network_def#existence": True})  # with batch normalisation that follows its batches
    slices, text = torch.rand(2, 1, 64, 64), ["a", "b"]
    with torch.no_grad():
        before = network(slices, text)
    (groups,) = parameter_groups(network, 1e-5, only)[-1:]
    network.train()
    found = network(slices, text, everything=True)
    (found.existence.sum() + found.logits.sum()).backward()
    torch.optim.SGD(groups["params"], 1e-3).step()
    with torch.no_grad():
        assert torch.equal(network.eval()(slices, text), before) == (only == "existence")
