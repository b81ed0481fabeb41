"""Masks of neighbouring slices are averaged, in mm, over the slices that show the object."""

from __future__ import annotations

import math

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.inference.agreement import Agreement, Neighbours, agreement_of, weights_of
from boltzformer.inference.existence import IMPROBABLE, ExistenceGate
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.slices import BLANK_LOGIT, Found, Slices
from boltzformer.inference.workers import Workers
from boltzformer.recipe import Recipe
from boltzformer.volumes.spacing import PLACES, SPACING_KNOWN, uneven_places
from monai.data import MetaTensor

from tests.support import small_network

PROMPTS = ["liver in abdominal CT", "aorta"]
SIGMA, SPACING = 2.5, 3.0
ONE, TWO = (math.exp(-0.5 * (mm / SIGMA) ** 2) for mm in (3.0, 6.0))


def test_slices_weigh_by_their_distance_in_mm():
    assert weights_of(SIGMA, SPACING) == pytest.approx([1.0, ONE, TWO])  # 9 mm is beyond three sigmas
    assert len(weights_of(SIGMA, 1.0)) == 1 + 7
    assert len(weights_of(0.7, 0.7)) == 1 + 3, "3 * 0.7 / 0.7 is rounded to a little below 3"
    assert weights_of(SIGMA, 0.75)[4] == weights_of(SIGMA, 1.5)[2] == weights_of(SIGMA, SPACING)[1]


@pytest.mark.parametrize(("sigma", "spacing"), [(0.0, 3.0), (2.5, float("nan")), (2.5, 8.0)])
def test_a_slice_alone(sigma, spacing):
    assert weights_of(sigma, spacing) == [1.0]


@pytest.mark.parametrize("wrong", [-1.0, 101.0, float("nan")])
def test_sigmas_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="agreement_mm"):
        agreement_of(Recipe({}), wrong)


def test_a_recipe_asks_for_the_objects_it_was_measured_for():
    stated = {"agreement": {"mm": SIGMA, "objects": ["liver"]}, "trained_on": {"objects": {"liver": ["hepar"]}}}
    asked = agreement_of(Recipe(stated))
    prompts = ["aorta", "the liver on this CT", "outline the Hepar"]
    assert asked.neighbours(prompts, SPACING).near.tolist() == [False, True, True]
    assert asked.neighbours(prompts[:1], SPACING) is None
    assert agreement_of(Recipe(stated), 1.0).neighbours(prompts, SPACING).near.all(), "asked for by name"
    for none in (Recipe({}), Recipe(stated)):
        sigma = 0.0 if none.content else None
        assert agreement_of(none, sigma).neighbours(prompts, SPACING) is None


def test_only_slices_with_the_object_count():
    """Two prompts, of which the second is missing in slice 1; slice 3 lies two away from slice 1."""
    logits = {0: [1.0, -2.0], 1: [3.0], 3: [-1.0, 4.0]}
    which = {0: [True, True], 1: [True, False], 3: [True, True]}
    held = Neighbours([1.0, 0.5, 0.25], torch.tensor([True, True]))
    for index in (3, 0, 1):
        held.hold(index, torch.tensor(which[index]), torch.tensor(logits[index])[:, None, None])
    assert held.slices == [0, 1, 3]
    held.average()
    p = {index: torch.tensor(values).sigmoid() for index, values in logits.items()}
    first = (p[1][0] + 0.5 * p[0][0] + 0.25 * p[3][0]) / 1.75
    assert held.logits(1).flatten().tolist() == pytest.approx([torch.logit(first).item()], abs=2e-3)
    assert held.logits(0)[1].item() == pytest.approx(-2.0, abs=2e-3), "alone within reach"
    expected = torch.logit((p[0][0] + 0.5 * p[1][0]) / 1.5).item()
    assert held.logits(0)[0].item() == pytest.approx(expected, abs=2e-3)


def test_certain_logits_stay_finite():
    held = Neighbours([1.0, 0.5], torch.tensor([True]))
    for index in (0, 1):
        held.hold(index, torch.tensor([True]), torch.tensor([[[40.0, -40.0, 0.0]]]))
    held.average()
    assert held.logits(0).flatten().tolist() == pytest.approx([16.0, -16.0, 0.0], abs=0.2)


def test_prompts_that_do_not_take_part_keep_their_own():
    """Of three prompts the second stands alone; the third is not in slice 1."""
    held = Neighbours([1.0, 0.5], torch.tensor([True, False, True]))
    held.hold(0, torch.tensor([True, True, True]), torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    held.hold(1, torch.tensor([True, True, False]), torch.tensor([-1.0, -2.0])[:, None, None])
    existence = torch.tensor([[4.0, 4.0, -torch.inf], [1.0, 1.0, 2.0]])
    expected = [[3.0, 4.0, -torch.inf], [2.0, 1.0, 2.0]]
    assert torch.allclose(held.mean_existence(existence), torch.tensor(expected))
    held.average()
    assert held.logits(0).flatten()[1:].tolist() == [2.0, 3.0]
    assert held.logits(1).flatten()[1:].tolist() == [-2.0]
    assert -1.0 < held.logits(1)[0].item() < held.logits(0)[0].item() < 1.0


def test_masks_that_are_let_go_do_not_count():
    held = Neighbours([1.0, 0.5], torch.tensor([True, False, True]))
    held.hold(0, torch.tensor([True, True, True]), torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    held.hold(1, torch.tensor([True, True, False]), torch.tensor([-1.0, -2.0])[:, None, None])
    held.restrict(torch.tensor([[True, False, True], [False, True, False]]))
    assert [held.which(index).tolist() for index in (0, 1)] == [[True, False, True], [False, True, False]]
    held.average()
    assert [held.logits(index).flatten().tolist() for index in (0, 1)] == [[1.0, 3.0], [-2.0]]
    held.restrict(torch.tensor([[False, False, True], [False, False, False]]))
    assert held.slices == [0]
    assert held.logits(0).flatten().tolist() == [3.0]


def test_means_are_taken_on_the_pixels_of_training():
    volume = Slices(torch.zeros(2, 5, 4), None, (2, 3))
    logits = torch.randn(2, 1, *volume.size, generator=torch.Generator().manual_seed(1)).half()
    found = Found.nothing(volume, 1, neighbours=Neighbours([1.0, 0.5], torch.tensor([True])))
    everywhere = torch.ones(2, 1, dtype=torch.bool)
    found.take(torch.arange(2), everywhere, found.part(logits.float(), everywhere, None))
    with Workers.of(1) as workers:
        found.agree(ExistenceGate(), workers)
    p = logits.float().sigmoid()
    means = torch.stack(((p[0] + 0.5 * p[1]) / 1.5, (p[1] + 0.5 * p[0]) / 1.5))
    assert torch.allclose(found.logits.float(), volume.enlarged(torch.logit(means)), atol=0.01)


@pytest.fixture(scope="module")
def network():
    return small_network(**{"network_def#existence": True})


@pytest.fixture(scope="module")
def volume():
    """Axial slices of 3 mm, all but the fourth with something in them."""
    image = torch.rand(1, 1, 40, 36, 7, generator=torch.Generator().manual_seed(1))
    image[..., 3] = 0
    return MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 1.0, SPACING, 1.0])))


def _mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The plain form, along the last axis of values (P, ..., D), over those that are kept."""
    weight = torch.tensor([TWO, ONE, 1.0, ONE, TWO])
    p = torch.nn.functional.pad(values * kept, (2, 2)).unfold(-1, 5, 1)
    w = torch.nn.functional.pad(kept.float(), (2, 2)).unfold(-1, 5, 1)
    return (p @ weight) / (w @ weight)


@pytest.mark.parametrize("settings", [{}, {"precision": "plain"}, {"keep_logits": False}])
@pytest.mark.parametrize("gated", [False, True])
def test_a_volume(network, volume, settings, gated):
    settings = {"progress": False, **settings}
    alone = PromptedSliceInferer(PROMPTS, progress=False, precision=settings.get("precision", "float32"))
    one_by_one = alone(volume, network)
    own = one_by_one.meta["existence"][0]
    computed = torch.ones_like(own, dtype=torch.bool)
    computed[:, 3] = False  # blank
    scores = _mean(torch.logit(own, eps=1e-9).where(computed, 0.0), computed).sigmoid().where(computed, 0.0)
    threshold = float(scores.flatten().sort().values[6:8].mean()) if gated else None
    kept = (scores >= (threshold or 0.0)) & (own >= min(threshold or 0.0, IMPROBABLE)) & computed
    assert not gated or (kept != (own >= threshold)).any(), "the scores' mean decides, not a slice's own"
    inferer = PromptedSliceInferer(PROMPTS, agreement=Agreement(SIGMA), existence=ExistenceGate(threshold), **settings)
    found = inferer(volume, network)
    assert torch.allclose(found.meta["existence"][0], scores, atol=1e-5)
    result = found.as_tensor()[0]
    expected = torch.logit(_mean(one_by_one.as_tensor()[0].float().sigmoid(), kept[:, None, None]))
    shown = kept[:, None, None].expand_as(expected)
    if settings.get("keep_logits", True):
        assert torch.allclose(result[shown].float(), expected[shown], atol=0.02)
        assert (result[~shown] == BLANK_LOGIT).all()
    else:
        clear = shown & (expected.abs() > 0.02)
        assert torch.equal(result[clear] > 0, expected[clear] > 0)
        assert (result[~shown] == 0).all()
    assert not torch.equal(result > 0, (one_by_one.as_tensor()[0] > 0) & shown), "neighbours have changed something"


def test_lower_precision_is_the_networks_alone(network, volume):
    low, sigma = {"autocast": torch.bfloat16, "progress": False}, SPACING  # all three weights matter
    alone = PromptedSliceInferer(PROMPTS, **low)(volume, network)
    found = PromptedSliceInferer(PROMPTS, agreement=Agreement(sigma), **low)(volume, network)
    neighbours = Neighbours(weights_of(sigma, SPACING), torch.ones(len(PROMPTS), dtype=torch.bool))
    own = torch.logit(alone.meta["existence"][0].T).where(torch.arange(7)[:, None] != 3, -torch.inf)
    assert torch.allclose(found.meta["existence"][0].T, neighbours.mean_existence(own).sigmoid(), atol=1e-6)
    for index in (0, 1, 2, 4, 5, 6):
        neighbours.hold(index, torch.ones(len(PROMPTS), dtype=torch.bool), alone.as_tensor()[0, ..., index])
    neighbours.average()
    assert torch.equal(found.as_tensor()[0, ..., 5].float(), neighbours.logits(5))


def test_an_unknown_spacing_leaves_slices_to_themselves(network, volume):
    unknown = MetaTensor(volume.as_tensor(), affine=volume.affine, meta={SPACING_KNOWN: False})
    near, alone = (PromptedSliceInferer(PROMPTS, agreement=Agreement(mm), progress=False) for mm in (SIGMA, 0.0))
    assert torch.equal(near(unknown, network).as_tensor(), alone(unknown, network).as_tensor())


def test_slices_of_another_axis_have_its_spacing(network, volume):
    along_x = MetaTensor(volume.as_tensor(), affine=torch.diag(torch.tensor([9.0, 1.0, SPACING, 1.0])))
    near, alone = (
        PromptedSliceInferer("aorta", spatial_dim=0, agreement=Agreement(mm), progress=False) for mm in (SIGMA, 0.0)
    )
    assert torch.equal(near(along_x, network).as_tensor(), alone(along_x, network).as_tensor())


def test_bits_depend_neither_on_memory_nor_on_other_prompts(network, volume):
    settings = {"agreement": Agreement(SIGMA), "progress": False}
    both = PromptedSliceInferer(PROMPTS, **settings)(volume, network).as_tensor()
    little = PromptedSliceInferer(PROMPTS, memory_gb=1e-9, **settings)(volume, network).as_tensor()
    one = PromptedSliceInferer(PROMPTS[1], **settings)(volume, network).as_tensor()
    assert torch.equal(both, little)
    assert torch.equal(both[:, 1:], one)


@pytest.mark.parametrize("gated", [False, True])
def test_a_volume_with_a_prompt_that_stands_alone(network, volume, gated):
    some = Agreement(SIGMA, frozenset({"aorta"}))
    settings = {"progress": False, "keep_logits": False}
    if gated:
        scores = PromptedSliceInferer(PROMPTS, **settings)(volume, network).meta["existence"][0]
        settings["existence"] = ExistenceGate(float(scores[0].median()) + 1e-6)
    mixed, near, alone = (
        PromptedSliceInferer(PROMPTS, agreement=agreement, **settings)(volume, network).as_tensor()[0] > 0
        for agreement in (some, Agreement(SIGMA), Agreement())
    )
    assert torch.equal(mixed[0], alone[0])
    assert torch.equal(mixed[1], near[1])
    assert not torch.equal(near, alone)


def _uneven(volume: torch.Tensor, heights: list[float], flip: bool) -> MetaTensor:
    """As `as_metatensor` leaves a series with gaps: the affine holds the mean spacing, the metadata the places."""
    places = torch.tensor([[5.0, 6.0, mm] for mm in heights])
    mean = (heights[-1] - heights[0]) / (len(heights) - 1)
    affine = torch.diag(torch.tensor([1.0, 1.0, mean, 1.0]))
    return MetaTensor(volume, affine=affine, meta={PLACES: places.flip(0) if flip else places})


@pytest.mark.parametrize("flip", [False, True])
def test_slices_with_a_gap_between_them_are_no_neighbours(network, volume, flip):
    """Two stacks of 3 mm, 60 mm apart: each gives what it would give alone."""
    plain = volume.as_tensor()
    whole = _uneven(plain, [0.0, 3.0, 6.0, 9.0, 69.0, 72.0, 75.0], flip)
    inferer = PromptedSliceInferer(PROMPTS, agreement=Agreement(SIGMA), progress=False)
    found = inferer(whole, network).as_tensor()
    for part in (slice(0, 4), slice(4, 7)):
        alone = inferer(MetaTensor(plain[..., part], affine=volume.affine), network).as_tensor()
        assert torch.allclose(found[..., part].float(), alone.float(), atol=0.01)
    by_mean = inferer(MetaTensor(plain, affine=whole.affine), network).as_tensor()
    assert not torch.allclose(found.float(), by_mean.float(), atol=0.01)


def test_uneven_slices_matter_along_their_own_axis_alone(network, volume):
    places = [0.0, 3.0, 6.0, 9.0, 69.0, 72.0, 75.0]
    whole = _uneven(volume.as_tensor(), places, False)
    assert uneven_places(whole, 2).tolist() == places
    assert uneven_places(whole, 0) is uneven_places(whole, 1) is uneven_places(volume, 2) is None
    whole.meta[SPACING_KNOWN] = False
    assert uneven_places(whole, 2) is None
