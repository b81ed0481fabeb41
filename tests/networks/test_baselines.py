"""Decoders of other papers behind BoltzFormer's interface: masks, padding, learning, checkpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks.baselines import in_place
from boltzformer.networks.baselines.sam import TextPromptedSam, TextPromptedSam2
from boltzformer.recipe_network import construct, record_definition
from boltzformer.training.losses import DecodedLoss
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from torch import Tensor, nn

from tests.support import BUNDLE, SMALL_NETWORK, small_network

PROMPTS = ["lung nodule in chest CT", "liver", "right parotid gland in head and neck CT"]
KINDS = {"sam": TextPromptedSam, "sam2": TextPromptedSam2}


def _overlay(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / "baseline" / f"{name}.json").read_text())


def _network(name: str, **changes: Any) -> Any:
    return small_network(**_overlay(name), **changes)


@pytest.fixture(scope="module", params=["sam", "sam2"])
def network(request: pytest.FixtureRequest) -> Any:
    return _network(request.param)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 1, 70, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_the_overlay_changes_the_decoder_and_keeps_the_encoders(name):
    baseline, plain = _network(name), small_network()
    assert type(baseline) is KINDS[name]
    assert baseline.image_size == plain.image_size
    shared = {key: tuple(value.shape) for key, value in plain.state_dict().items()}
    parts = ("image_encoder.", "text_encoder.", "text_projection.")
    if name == "sam2":  # SAM stops at stride 16
        parts = (*parts, "pixel_decoder.")
    for key, value in baseline.state_dict().items():
        if key.startswith(parts):
            assert shared.pop(key) == tuple(value.shape)
    assert not [key for key in shared if key.startswith(parts)]


@torch.no_grad()
def test_masks_have_the_input_size_and_follow_prompt_and_image(network, image):
    logits = network(image, PROMPTS)
    assert logits.shape == (3, 1, 70, 50)
    assert logits.dtype == torch.float32
    many = network.segment(image, PROMPTS)
    assert many.shape == (3, 3, 70, 50)
    assert all(torch.equal(many[i, i], logits[i, 0]) for i in range(3))
    assert not torch.allclose(many[0, 0], many[0, 1])
    assert not torch.allclose(many[0, 0], many[1, 0])
    assert torch.equal(network(image.flip(0), PROMPTS[::-1]).flip(0), logits)


@torch.no_grad()
def test_padding_and_batch_change_nothing(network, image):
    """All together, two prompts a slice and of different lengths, as in training."""
    prompts = [*PROMPTS, "liver", "spleen in abdominal CT", PROMPTS[0]]
    single = [network(image[i // 2 : i // 2 + 1], [prompts[i]]) for i in range(6)]
    network.batch_invariant = False
    try:
        together = network(image, prompts)
    finally:
        network.batch_invariant = True
    assert torch.allclose(together, torch.cat(single), atol=1e-4)


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_steps_lower_the_loss_and_reach_every_weight(name):
    network = _network(name).train()
    loss = DecodedLoss(DiceCELoss(sigmoid=True, squared_pred=True))
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    label = torch.zeros(2, 1, 64, 64)
    label[:, :, 20:40, 10:30] = 1
    found = []
    for _ in range(6):
        optimizer.zero_grad()
        value = loss(network(image, PROMPTS[:2]), label)
        value.backward()
        # a weight without gradient stops parallel training
        assert [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
        found.append(float(value.detach()))
    assert found[-1] < found[0] - 0.05


def test_sam_2_scores_existence_and_learns_it(image):
    network = _network("sam2", **{"network_def#existence": True})
    found = network.train()(image, PROMPTS, everything=True)
    assert found.existence.shape == (3,)
    loss = DecodedLoss(DiceCELoss(sigmoid=True), existence_weight=1.0)
    loss(found, torch.ones(3, 1, 70, 50)).backward()
    assert network.mask_decoder.pred_obj_score_head.proj_in.weight.grad.abs().sum() > 0
    assert _network("sam2").predict(image, PROMPTS).existence is None
    with pytest.raises(InputError, match="no existence head"):
        in_place.sam(existence=True)


def test_a_loss_on_layers_is_refused(network, image):
    loss = DecodedLoss(DiceCELoss(sigmoid=True), layer_loss_weight=1.0)
    with pytest.raises(InputError, match="layer_loss_weight"):
        loss(network(image, PROMPTS, everything=True), torch.ones(3, 1, 70, 50))


@torch.no_grad()
def test_a_definition_builds_the_same_network_again(network, image, tmp_path):
    definition = json.loads(json.dumps(record_definition(network, tmp_path)))
    again = construct(definition, tmp_path).eval()
    assert type(again) is type(network)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(image, PROMPTS), network(image, PROMPTS))


def test_seem_has_masked_attention_and_a_loss_at_each_layer(image):
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "baseline/seem.json")])
    parser.update(SMALL_NETWORK)
    network: nn.Module = parser.get_parsed_content("network_def").train()
    loss = parser.get_parsed_content("loss")
    assert loss.needs_everything
    found = network(image, PROMPTS, everything=True)
    assert len(found.layer_masks) == 3
    label = torch.zeros(3, 1, 70, 50)
    label[..., 20:50, 10:40] = 1
    final = DecodedLoss(loss.mask_loss)(found.logits, label)
    assert loss(found, label) > final
