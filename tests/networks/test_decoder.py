"""Every form of the decoder must equal the plain one: outputs, sets and gradients."""

from __future__ import annotations

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks.attention.patches import Patches
from boltzformer.networks.attention.rules import Boltzmann, Full, Threshold
from boltzformer.networks.decoder import BoltzFormerDecoder
from boltzformer.networks.noise import fresh_noise
from boltzformer.networks.semantic_map import foldable, folding_pays, semantic_map_of

GRIDS = [(4, 6), (8, 12), (16, 24)]
SQUARE = [(8, 8), (16, 16), (32, 32)]
ODD = [(3, 5), (7, 9), (15, 17)]  # no scale is a multiple of another, so that maps are resized by interpolation


def make(m=4, heads=4, batch=2, prompts=1, seed=0, grids=GRIDS, **settings):
    torch.manual_seed(seed)
    decoder = BoltzFormerDecoder(dim=32, num_queries=m, num_heads=heads, feedforward_dim=64, **settings)
    features = [torch.randn(batch, 32, *grid) for grid in grids]
    semantic_map = torch.randn(batch, 32, 2 * grids[-1][0], 2 * grids[-1][1])
    text = torch.randn(batch * prompts, 5, 32)
    patches = decoder.patches_per_layer(grids)
    noise = fresh_noise(batch * prompts, decoder.sets_per_query, m, patches, torch.device("cpu"))
    return decoder, features, semantic_map, text, noise


def run(form, decoder, features, maps, text, noise, mask=None):
    """Masks of the queries and the attention sets, by one form of the attention and the map that belongs to it."""
    for block in decoder.blocks:
        block.cross_attention.form = form
    identity = torch.nn.Conv2d(32, 32, 1)
    torch.nn.init.dirac_(identity.weight)
    torch.nn.init.zeros_(identity.bias)
    grids = [tuple(v.shape[-2:]) for v in features]
    semantic = semantic_map_of(maps, identity.requires_grad_(False), grids, "plain" if form == "plain" else "explicit")
    result = decoder([Patches.of(v) for v in features], semantic, text, mask, noise, keep_sets=True)
    return semantic.mask_logits(result.mu), result.layer_sets


@pytest.mark.parametrize("form", ["dense", "gathered", "kernel", "auto"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"heads": 1},
        {"heads": 8},
        {"m": 1},
        {"m": 10},
        {"m": 101},
        {"batch": 3},
        {"prompts": 3},
        {"prompts": 3, "batch": 1, "m": 101},
        {"batch": 1, "grids": SQUARE},
        {"grids": ODD},
        {"attention": Boltzmann(sample_ratio=0.01)},
        {"attention": Boltzmann(sample_ratio=0.5)},
        {"attention": Boltzmann(heads_share_set=False)},
        {"attention": Boltzmann(heads_share_set=False, sample_ratio=0.02), "m": 10},
        {"attention": Threshold()},
        {"attention": Threshold(0.999)},  # mostly empty sets
        {"attention": Full()},
        {"text_conditioned_prior": False},
        {"attention": Boltzmann(base_temperature=0.25)},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_the_plain_form(settings, form):
    inputs = make(**settings)
    expected, expected_sets = run("plain", *inputs)
    masks, sets = run(form, *inputs)
    for kept, expected_kept in zip(sets, expected_sets, strict=True):
        assert (kept is None) == (expected_kept is None)
        assert kept is None or torch.equal(kept, expected_kept)
    assert (masks - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("form", ["dense", "gathered"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"m": 1},
        {"m": 10, "grids": SQUARE},
        {"m": 101},
        {"grids": ODD},
        {"heads": 1, "batch": 1},
        {"heads": 8},
        {"prompts": 3},
        {"prompts": 2, "m": 101},
        {"attention": Boltzmann(sample_ratio=0.01)},
        {"attention": Boltzmann(sample_ratio=0.5)},
        {"attention": Boltzmann(heads_share_set=False)},
        {"attention": Boltzmann(heads_share_set=False, sample_ratio=0.02), "m": 10},
        {"attention": Threshold(0.999)},  # mostly empty sets
        {"attention": Full()},
    ],
    ids=str,
)
def test_gradients_equal_those_of_the_plain_form(settings, form):
    decoder, features, semantic_map, text, noise = make(**settings)
    leaves = [*features, semantic_map, text]
    for leaf in leaves:
        leaf.requires_grad_()
    weight = torch.randn(len(text), decoder.num_queries, *semantic_map.shape[-2:])
    gradients = []
    for one in (form, "plain"):
        loss = (run(one, decoder, features, semantic_map, text, noise)[0] * weight).sum()
        gradients.append(torch.autograd.grad(loss, [*decoder.parameters(), *leaves], allow_unused=True))
    names = [name for name, _ in decoder.named_parameters()] + ["scale 0", "scale 1", "scale 2", "map", "text"]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            largest = max(float(theirs.abs().max()), 1e-2)  # the key bias has a gradient of rounding errors alone
            assert (ours - theirs).abs().max() < 1e-3 * largest, name


def test_layer_masks_are_the_masks_at_each_grid_with_gradients():
    decoder, features, maps, text, noise = make()
    grids = [tuple(v.shape[-2:]) for v in features]
    semantic = semantic_map_of(maps, torch.nn.Conv2d(32, 32, 1), grids, "explicit")
    scales = [Patches.of(v) for v in features]
    result = decoder(scales, semantic, text, None, noise, keep_masks=True)
    assert result.layer_sets is None
    assert [tuple(masks.shape) for masks in result.layer_masks] == [(2, 4, *grid) for grid in grids] * 3
    result.layer_masks[5].square().mean().backward()
    assert decoder.blocks[4].cross_attention.attention.in_proj_weight.grad.abs().sum() > 0
    assert decoder.blocks[5].cross_attention.attention.in_proj_weight.grad is None  # comes after this mask
    without = decoder(scales, semantic, text, None, noise)
    assert without.layer_masks is None
    assert torch.equal(without.mu, result.mu)


def test_nothing_that_is_passed_in_is_changed():
    decoder, features, maps, text, noise = make()
    grids = [tuple(v.shape[-2:]) for v in features]
    semantic = semantic_map_of(maps, torch.nn.Conv2d(32, 32, 1), grids, "explicit")
    scales = [Patches.of(v) for v in features]
    before = [*scales], [scale.rows.clone() for scale in scales], text.clone()
    decoder(scales, semantic, text, None, noise)
    assert all(one is other for one, other in zip(scales, before[0], strict=True))
    assert all(torch.equal(scale.rows, rows) for scale, rows in zip(scales, before[1], strict=True))
    assert torch.equal(text, before[2])


def test_text_padding_and_company_change_nothing():
    decoder, features, semantic_map, text, noise = make()
    padded = torch.cat((text, torch.randn(2, 7, 32)), 1)
    mask = torch.arange(12)[None].expand(2, -1) < 5
    with torch.no_grad():
        plain, _ = run("auto", decoder, features, semantic_map, text, noise)
        with_padding, _ = run("auto", decoder, features, semantic_map, padded, noise, mask)
    assert torch.allclose(plain, with_padding, atol=1e-5)


@pytest.mark.parametrize("form", ["explicit", "folded"])
@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_forms_of_the_semantic_map_equal_the_plain_one(form, prompts, bias, gradients):
    torch.manual_seed(0)
    grids = [(16, 24), (8, 12), (4, 6)]
    projection = torch.nn.Conv2d(16, 16, 3, padding=1, bias=bias)
    finest, mu = torch.randn(2, 16, 32, 48), torch.randn(2 * prompts, 3, 16)
    with torch.set_grad_enabled(gradients):
        plain, other = (semantic_map_of(finest, projection, grids, one) for one in ("plain", form))
        assert torch.allclose(other.mask_logits(mu), plain.mask_logits(mu), atol=1e-4)
        for grid in grids:
            assert torch.allclose(other.patch_logits(mu, grid), plain.patch_logits(mu, grid), atol=1e-4)
        part, joined = other[1:2], type(other).concatenate([other[:1], other[1:]])
        assert torch.allclose(part.mask_logits(mu[prompts:]), plain.mask_logits(mu)[prompts:], atol=1e-4)
        assert torch.equal(joined.patch_logits(mu, grids[0]), other.patch_logits(mu, grids[0]))


def test_folding_is_chosen_from_the_sizes():
    assert foldable((32, 48), (16, 24))
    assert not foldable((32, 48), (10, 24))
    sizes = {"map_pixels": 256**2, "patches_of_layers": 3 * 21504}
    assert folding_pays(queries=10, dim=256, **sizes)
    assert not folding_pays(queries=101, dim=64, **sizes)
    assert folding_pays(queries=10, dim=512, **sizes, prompts=4)
    assert not folding_pays(queries=10, dim=256, **sizes, prompts=4)


def test_bad_width_is_refused():
    with pytest.raises(InputError, match="num_heads"):
        BoltzFormerDecoder(dim=32, num_heads=5)
