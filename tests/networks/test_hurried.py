"""The hurried network against the plain one: in float32 the same function, in bfloat16 nearly the same masks."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import timm
import torch
from boltzformer.networks import hurried as hurried_module
from boltzformer.networks.hurried import LARGEST_GROUP, HurriedNetwork, _WithGelu, fuse_backbone

from tests.support import small_network

PROMPTS = ["liver in abdominal CT", "a small nodule", "aorta", "left kidney"]


@pytest.fixture(scope="module")
def tiny_vit() -> torch.nn.Module:
    """A backbone with norms and position biases that do something."""
    torch.manual_seed(0)
    made = timm.create_model("tiny_vit_5m_224", features_only=True, window_sizes=(8, 8, 16, 8)).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if hasattr(module, "attention_biases"):
            torch.nn.init.normal_(module.attention_biases)
    return made


@torch.no_grad()
@pytest.mark.parametrize("gelu", [True, False])
def test_fused_backbone_is_the_same_function(tiny_vit, gelu):
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    fused = fuse_backbone(tiny_vit, gelu)
    assert (sum(isinstance(module, _WithGelu) for module in fused.modules()) > 10) == gelu
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    for plain, quick in zip(tiny_vit(image), fused(image), strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in tiny_vit.modules())  # the given one stays
    copied = copy.deepcopy(fused).to(torch.bfloat16)  # no bias of the first one is read
    assert all(feature.dtype == torch.bfloat16 for feature in copied(image.bfloat16()))


@torch.no_grad()
def test_fused_backbone_under_autocast(tiny_vit):
    image, fused = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), fuse_backbone(tiny_vit)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fused(image), tiny_vit(image)
    assert [one.dtype for one in found] == [one.dtype for one in expected]
    for quick, plain, exact in zip(found, expected, tiny_vit(image), strict=True):
        assert (quick - exact).norm() < 1.2 * (plain - exact).norm()


def check_that_bits_depend_on_nothing_else(hurried: HurriedNetwork, device: str) -> None:
    """Prompts and slices in company and without give the same bits, and each slice at any place of a group."""
    image = torch.rand(LARGEST_GROUP + 3, 1, 40, 36, generator=torch.Generator().manual_seed(1)).to(device)
    together = hurried.predict(image, PROMPTS)
    assert together.logits.shape == (LARGEST_GROUP + 3, 4, 40, 36)
    for p, prompt in enumerate(PROMPTS):
        assert torch.equal(hurried.predict(image, [prompt]).logits[:, 0], together.logits[:, p])
    other = image.clone()
    other[3:] = torch.rand(LARGEST_GROUP, 1, 40, 36, generator=torch.Generator().manual_seed(2))
    assert torch.equal(hurried.predict(other, PROMPTS).logits[:3], together.logits[:3])
    assert torch.equal(hurried.predict(image[:2], PROMPTS).logits, together.logits[:2])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_on_no_other_prompt_and_no_other_slice(dtype):
    hurried = HurriedNetwork(small_network(**{"network_def#existence": True}), dtype)
    check_that_bits_depend_on_nothing_else(hurried, "cpu")


@torch.no_grad()
@pytest.mark.parametrize("form", [True, False])
def test_a_group_that_is_encoded_in_parts(monkeypatch, form):
    monkeypatch.setattr(hurried_module, "CPU_ENCODED_PIXELS", 3 * 64 * 64)
    plain = small_network(**{"network_def#fold_semantic_map": form, "network_def#existence": True})
    hurried = HurriedNetwork(plain)
    assert (hurried.encoded, hurried.group) == (2, LARGEST_GROUP)
    check_that_bits_depend_on_nothing_else(hurried, "cpu")
    image = torch.rand(3, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    plain.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    again = HurriedNetwork(plain)
    torch.testing.assert_close(again.segment(image, PROMPTS), plain.segment(image, PROMPTS), rtol=1e-3, atol=1e-3)
    assert seen == [2, 2, 1, 1, 1], "what fills a group up is not encoded"


def test_groups_are_smaller_for_larger_slices():
    sizes = {64: (8, 8), 256: (4, 8), 320: (2, 8), 512: (1, 4), 1024: (1, 1)}
    holder = SimpleNamespace(image_encoder=SimpleNamespace(mean=torch.zeros(1)))
    for size, expected in sizes.items():
        holder.image_size = (size, size)
        assert (hurried_module.encoded_at_once(holder), hurried_module.group_of(holder)) == expected


@torch.no_grad()
@pytest.mark.parametrize("form", [True, False])
def test_float32_is_the_plain_network_up_to_rounding(form):
    plain = small_network(**{"network_def#fold_semantic_map": form, "network_def#existence": True})
    image = torch.rand(3, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    exact, quick = plain.predict(image, PROMPTS), HurriedNetwork(plain).predict(image, PROMPTS)
    torch.testing.assert_close(quick.logits, exact.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quick.existence, exact.existence, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_masks_that_are_not_worth_it_are_left_out():
    hurried = HurriedNetwork(small_network(**{"network_def#existence": True}))
    image = torch.rand(LARGEST_GROUP + 3, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    whole = hurried.predict(image, PROMPTS)
    middle = whole.existence.median()
    asked = torch.ones(len(image), len(PROMPTS), dtype=torch.bool)
    asked[2:5, 1] = False
    found = hurried.predict(image, PROMPTS, asked=asked, worth=lambda existence: existence >= middle)
    wanted = asked & (whole.existence >= middle)
    assert torch.equal(found.existence[asked], whole.existence[asked])
    assert torch.equal(found.logits, torch.where(wanted[..., None, None], whole.logits, 0.0))


@torch.no_grad()
@pytest.mark.parametrize("form", [True, False])
def test_bfloat16_is_near(form):
    plain = small_network(**{"network_def#fold_semantic_map": form})
    image = torch.rand(3, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    exact = plain.predict(image, PROMPTS).logits
    low = HurriedNetwork(plain, torch.bfloat16).predict(image, PROMPTS).logits
    assert not torch.equal(exact, low)
    # random weights draw other patches where a logit is rounded otherwise: most of the mask stays
    assert (exact - low).abs().median() < 0.05 * exact.abs().median() + 0.05


@torch.no_grad()
def test_position_at_stride_32_and_hooks_stay():
    plain = small_network(**{"network_def#image_encoder#add_position": True})
    plain.image_encoder.place.fill_(3.0)
    quick = HurriedNetwork(plain)
    image = torch.rand(2, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    handle = plain.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    torch.testing.assert_close(
        quick.segment(image, PROMPTS[:1]), plain.segment(image, PROMPTS[:1]), rtol=1e-3, atol=1e-3
    )
    handle.remove()
    assert seen == [LARGEST_GROUP, 1, 1]  # one group, then slice by slice


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_on_cuda_depend_on_no_other_prompt_and_no_other_slice(dtype):
    check_that_bits_depend_on_nothing_else(HurriedNetwork(small_network().cuda(), dtype), "cuda")
