"""The whole network: shapes, invariance, seeds, sharing, training mode."""

from __future__ import annotations

import pytest
import torch
from boltzformer.errors import InputError

PROMPTS = ["lung nodule in chest CT", "liver", "right parotid gland in head and neck CT"]


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 1, 70, 50, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def logits(network, image):
    with torch.no_grad():
        return network(image, PROMPTS)


def test_logits_have_the_input_size(logits, image):
    assert logits.shape == (3, 1, 70, 50)
    assert logits.dtype == torch.float32
    assert logits.std() > 0


@torch.no_grad()
def test_batch_composition_changes_no_bit(network, image, logits):
    singles = torch.cat([network(image[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert torch.equal(logits, singles)
    assert torch.equal(network(image.flip(0), PROMPTS[::-1]).flip(0), logits)


@torch.no_grad()
def test_prompts_share_the_image_encoding(network, image, logits):
    many = network.segment(image, PROMPTS)
    assert many.shape == (3, 3, 70, 50)
    assert all(torch.equal(many[i, i], logits[i, 0]) for i in range(3))
    features, text = network.encode_image(image), network.encode_text(PROMPTS)
    assert torch.equal(network.decode(features, text), logits)
    assert torch.equal(network.decode(features[1:2], text[1:2]), logits[1:2])


@torch.no_grad()
@pytest.mark.parametrize("fold", [True, False])
def test_batched_evaluation_equals_one_by_one(make_network, image, logits, fold):
    network = make_network(batch_invariant=False, fold_semantic_map=fold).eval()
    assert torch.allclose(network(image, PROMPTS), logits, atol=1e-4)
    assert torch.allclose(network.segment(image, PROMPTS)[1, 2], network(image[1:2], PROMPTS[2:])[0, 0], atol=1e-4)


@torch.no_grad()
def test_seed_decides_the_draw(make_network, image):
    network = make_network().eval()
    first = network(image, PROMPTS)
    assert torch.equal(first, network(image, PROMPTS))
    network.seed = 1
    second = network(image, PROMPTS)
    assert not torch.equal(first, second)
    assert torch.equal(network.segment(image, PROMPTS, seed=0)[0, 0], first[0, 0])


@torch.no_grad()
def test_global_random_state_is_neither_read_nor_changed_in_evaluation(network, image, logits):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(network(image, PROMPTS), logits)
    assert torch.equal(before, torch.get_rng_state())


def test_training_draws_afresh_for_every_example(make_network):
    network = make_network().train()
    image = torch.rand(1, 1, 64, 64).expand(2, -1, -1, -1)
    trace = []
    network.image_encoder.eval()
    network.decode(network.encode_image(image), network.encode_text(["liver", "liver"]), trace=trace)
    assert len(trace) == 9
    assert any(not torch.equal(kept[0], kept[1]) for kept in trace)


def test_every_parameter_learns(make_network):
    network = make_network().train()
    network(torch.rand(2, 3, 64, 64), ["liver", "aorta"]).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == set()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@torch.no_grad()
def test_trace_gives_the_sets_of_each_layer_and_changes_nothing(network, image, logits):
    trace: list = []
    features, text = network.encode_image(image[:1]), network.encode_text(PROMPTS[:1])
    assert torch.equal(network.decode(features, text, trace=trace), logits[:1])
    grids = network.attention_grids()
    assert [kept.shape[-1] for kept in trace] == [h * w for h, w in grids] * 3
    assert all(kept.dtype == torch.bool and kept.any(-1).all() for kept in trace)


@torch.no_grad()
def test_default_prompt(network, image):
    assert torch.equal(network(image), network(image, ["lesion"] * 3))


@torch.no_grad()
def test_ensemble_only(make_network, image):
    network = make_network(use_pigma=False).eval()
    assert network.pigma is None
    assert network(image, PROMPTS).shape == (3, 1, 70, 50)


@torch.no_grad()
def test_oblong_working_size(make_network):
    network = make_network(image_size=(64, 96)).eval()
    assert network(torch.rand(1, 3, 40, 300)).shape == (1, 1, 40, 300)
    assert network.attention_grids() == [(2, 3), (4, 6), (8, 12)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["", "a", "b"], "empty"),
        ([3, "a", "b"], "must be text"),
        (["a"], "one prompt for each slice"),
        ([], "non-empty"),
    ],
)
def test_bad_prompts(network, image, text, message):
    with pytest.raises(InputError, match=message):
        network(image, text)


def test_bad_images_and_sizes(network, make_network):
    with pytest.raises(InputError, match="1 or 3"):
        network(torch.rand(1, 2, 64, 64))
    with pytest.raises(InputError, match="1 or 3"):
        network(torch.rand(1, 64, 64))
    with pytest.raises(InputError, match="multiple of 32"):
        make_network(image_size=100)


@pytest.mark.parametrize("gather", [0.0, 1.1], ids=["dense", "gather"])
def test_bfloat16_autocast_agrees_with_float32(make_network, image, gather):
    network = make_network().eval()
    for block in network.decoder.blocks:
        block.cross_attention.gather_density = gather
    with torch.no_grad():
        exact = network(image, PROMPTS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(image, PROMPTS)
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.98
    network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(image, PROMPTS).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
