"""The whole network: shapes, invariance, seeds, sharing, training mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks import positions, semantic_map
from PIL import Image

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
@pytest.mark.parametrize("shape", [(131, 97), (33, 41)], ids=["shrinks", "grows"])
def test_image_is_resized_and_normalised_for_encoder_and_pigma(network, shape):
    """By Pillow, which smooths where it shrinks, and with the backbone's published statistics."""
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(4))
    resized = torch.from_numpy(
        np.array(Image.fromarray(image[0, 0].numpy()).resize((64, 64), Image.Resampling.BILINEAR))
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((resized[..., None] - mean) / std).permute(2, 0, 1)[None]
    seen = []
    handle = network.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = network.encode_image(image)
    handle.remove()
    assert (seen[0] - expected).abs().max() < 1e-4
    share = features.from_image
    assert (
        share - network.pigma.image_share(expected, (share.shape[-2] // 2, share.shape[-1] // 2))
    ).abs().max() < 1e-4


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
    assert torch.equal(network.decode(features, text).logits, logits)
    assert torch.equal(network.decode(features[1:2], text[1:2]).logits, logits[1:2])


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
    network.image_encoder.eval()
    text = network.encode_text(["liver", "liver"])
    sets = network.decode(network.encode_image(image), text, keep_sets=True).layer_sets
    assert len(sets) == 9
    assert any(not torch.equal(kept[0], kept[1]) for kept in sets)
    sets = network.decode(network.encode_image(image[:1]), text, keep_sets=True).layer_sets  # two prompts of a slice
    assert any(not torch.equal(kept[0], kept[1]) for kept in sets)


def test_every_parameter_learns(make_network):
    network = make_network().train()
    network(torch.rand(2, 3, 64, 64), ["liver", "aorta"]).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == set()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@torch.no_grad()
def test_sets_and_masks_of_the_layers_are_returned_and_change_nothing(network, image, logits):
    features, text = network.encode_image(image), network.encode_text(PROMPTS)
    decoded = network.decode(features, text, keep_masks=True, keep_sets=True)
    assert torch.equal(decoded.logits, logits)
    grids = network.attention_grids() * 3
    assert [tuple(kept.shape) for kept in decoded.layer_sets] == [(3, 1, 4, h * w) for h, w in grids]
    assert [tuple(masks.shape) for masks in decoded.layer_masks] == [(3, 4, *grid) for grid in grids]
    assert all(kept.dtype == torch.bool and kept.any(-1).all() for kept in decoded.layer_sets)
    assert decoded.queries.shape == (3, 4, 32)
    assert decoded.query_masks.shape == (3, 4, 16, 16)
    assert decoded.existence is None


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"fold_semantic_map": False}, {"fold_semantic_map": True}, {"num_queries": 40}]
)
def test_plain_network_gives_the_same_masks(make_network, image, settings):
    fast, plain = make_network(**settings).eval(), make_network(**settings, plain=True).eval()
    assert torch.allclose(fast(image, PROMPTS), plain(image, PROMPTS), atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"fold_semantic_map": False}, {"plain": True}, {"existence": True}])
def test_several_prompts_a_slice_are_as_the_slice_several_times(make_network, image, settings):
    network = make_network(**settings, batch_invariant=False).eval()  # as in training, with a draw that repeats
    two, pairs = image[:2], [*PROMPTS, *reversed(PROMPTS)]
    shared, alone = network(two, pairs, everything=True), network(two.repeat_interleave(3, 0), pairs, everything=True)
    assert shared.logits.shape == (6, 1, 70, 50)
    assert torch.allclose(shared.logits, alone.logits, atol=1e-4)
    weight = torch.randn_like(shared.logits)
    parameters = [p for name, p in network.named_parameters() if "existence" not in name]
    gradients = [
        torch.autograd.grad((one.logits * weight).sum(), parameters, retain_graph=True)  # the backbone caches biases
        for one in (shared, alone)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-3 * float(other.abs().max().clamp(min=1)))
    if shared.existence is not None:
        assert torch.allclose(shared.existence, alone.existence, atol=1e-4)


def test_existence_head_scores_each_pair_and_disturbs_nothing(make_network, image):
    network, without = make_network(existence=True).eval(), make_network().eval()
    without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("existence.")})
    with torch.no_grad():
        prediction = network.predict(image, PROMPTS)
        assert prediction.existence.shape == (3, 3)
        assert torch.equal(prediction.logits, without.segment(image, PROMPTS))
        alone = network.predict(image[1:2], PROMPTS[2:])
        assert torch.equal(alone.existence[0, 0], prediction.existence[1, 2])
    network.train()(image, PROMPTS, everything=True).existence.sum().backward()
    learned = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert learned == {"existence"}


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
        (["a"], "as many prompts for each slice"),
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


@pytest.mark.parametrize("form", ["dense", "auto", "plain"])
def test_bfloat16_autocast_agrees_with_float32(make_network, image, form):
    network = make_network(existence=True).eval()
    for block in network.decoder.blocks:
        block.cross_attention.form = form
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


def test_training_after_inference_mode(make_network):
    positions._cache.clear()
    network = make_network()
    with torch.inference_mode():
        network.eval()(torch.rand(1, 1, 64, 64), ["liver"])
    network.train()(torch.rand(2, 1, 64, 64), ["liver", "aorta"]).sum().backward()


def test_network_can_be_pickled(make_network, tmp_path, image):
    network = make_network().eval()
    torch.save(network, tmp_path / "network.pt")
    loaded = torch.load(tmp_path / "network.pt", weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(image, PROMPTS), network(image, PROMPTS))


@torch.no_grad()
def test_counts_must_match(network, image):
    features, text = network.encode_image(image[:2]), network.encode_text(PROMPTS)
    with pytest.raises(InputError, match="2 slices came with 3 prompts"):
        network.decode(features, text)
    with pytest.raises(InputError, match="2 slices came with 1 prompts"):
        network.decode(features, text[:1])
    assert network.decode(features, text[:2]).logits.shape == (2, 1, 70, 50)


@torch.no_grad()
def test_prompts_of_a_slice_share_its_rows_and_resized_maps(make_network, image, monkeypatch):
    network = make_network(fold_semantic_map=False).eval()
    resized = []
    original = semantic_map._resize
    monkeypatch.setattr(semantic_map, "_resize", lambda *arguments: resized.append(1) or original(*arguments))
    one, text = network.encode_image(image[:1]), network.encode_text(PROMPTS)
    masks = network.decode(one, text).logits
    assert len(resized) == 3  # one for each scale, not for each prompt
    assert torch.equal(masks[2:], network.decode(one, text[2:]).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"image_size": [64, 64, 64]}, "height and width"),
    ],
)
def test_settings_out_of_range_are_an_input_error(make_network, settings, message):
    with pytest.raises(InputError, match=message):
        make_network(**settings)
