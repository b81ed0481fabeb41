"""A first look every few millimetres: what it computes, and that it changes nothing else."""

from __future__ import annotations

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.inference.coarse import IMPROBABLE, CoarsePass, after_looks, coarse_pass_of, first_looks
from boltzformer.inference.existence import ExistenceGate
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.slices import BLANK_LOGIT
from boltzformer.recipe import Recipe
from boltzformer.volumes.spacing import PLACES
from monai.data import MetaTensor

from tests.support import small_network

PROMPTS = ["liver in abdominal CT", "a small nodule", "aorta"]
EVERY_4_MM = CoarsePass(4.0, frozenset({"liver", "aorta"}))


def test_steps_follow_the_spacing_and_the_wording():
    assert EVERY_4_MM.steps(PROMPTS, 1.0) == [4, 1, 4]  # nobody measured what is lost of a small nodule
    assert EVERY_4_MM.steps(["outline the Liver in abdominal CT"], 1.3) == [3]
    assert EVERY_4_MM.steps(["aorta"], 1.5) == [2], "no farther apart than asked for"
    assert CoarsePass(3.3, EVERY_4_MM.terms).steps(["aorta"], 1.1) == [3], "3.3 / 1.1 is rounded to a little below 3"
    assert EVERY_4_MM.steps(["aorta"], 5.0) == EVERY_4_MM.steps(["aorta"], float("nan")) == [1]
    assert CoarsePass().steps(PROMPTS, 1.0) == [1, 1, 1]


def test_looks_and_what_they_leave():
    slices = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 21, 22])  # blank ones between
    looks = first_looks(slices, [4, 1], 25)
    assert looks.nonzero()[:, 0].tolist() == [0, 4, 8, 9, 20, 22]
    assert first_looks(slices, [1, 1], 25).nonzero()[:, 0].tolist() == slices.tolist()
    probability = torch.zeros(25, 2)
    probability[4, 0] = IMPROBABLE
    more = after_looks(slices, looks, probability, [4, 1])
    assert more[:, 0].nonzero()[:, 0].tolist() == [1, 2, 3, 5, 6, 7]
    assert more[:, 1].nonzero()[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 21]  # the small nodule is searched everywhere
    assert not after_looks(slices, looks, torch.zeros(25, 2), [4, 4]).any()
    assert first_looks(torch.zeros(0, dtype=torch.long), [4], 3).sum() == 0


@pytest.fixture(scope="module")
def network():
    """Its existence score differs from slice to slice, from nearly 0 to nearly 1."""
    made = small_network(**{"network_def#existence": True})
    image = torch.rand(23, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = made.predict(image, PROMPTS).existence
        last = made.existence.classify[-1]
        scale = 6 / found.std()
        last.weight *= scale
        last.bias += scale * last.bias - last.bias - scale * found.mean() - 3
    return made


@pytest.fixture(scope="module")
def volume():
    image = torch.rand(23, 1, 40, 36, generator=torch.Generator().manual_seed(1))
    return MetaTensor(image.permute(1, 2, 3, 0)[None], affine=torch.eye(4))


def _segment(volume, network, coarse, prompts=PROMPTS, **settings):
    gate = settings.pop("existence", ExistenceGate(0.5))
    return PromptedSliceInferer(prompts, existence=gate, coarse=coarse, progress=False, **settings)(volume, network)


def test_what_is_computed_is_as_before_and_the_rest_is_empty(volume, network):
    everywhere = _segment(volume, network, None)
    score = everywhere.meta["existence"][0].T  # (D, P)
    slices = torch.arange(23)
    looks = first_looks(slices, [4, 1, 4], 23)
    computed = looks[:, None] | after_looks(slices, looks, score, [4, 1, 4])
    assert 0 < int((~computed).sum()) < 23
    result = _segment(volume, network, EVERY_4_MM)
    there = computed.T[None, :, None, None]
    assert torch.equal(result.as_tensor(), torch.where(there, everywhere.as_tensor(), BLANK_LOGIT))
    assert torch.equal(result.meta["existence"][0].T, torch.where(computed, score, 0.0))
    assert result.meta["coarse_mm"].tolist() == [[4.0, 0.0, 4.0]]
    assert everywhere.meta["coarse_mm"].tolist() == [[0.0, 0.0, 0.0]]


def test_a_slice_is_encoded_once_whoever_asks(volume, network, monkeypatch):
    inferer = PromptedSliceInferer(PROMPTS, existence=ExistenceGate(0.5), coarse=EVERY_4_MM, progress=False)
    computing = inferer.computing(network)
    seen, encode = [], computing.encode_image
    monkeypatch.setattr(computing, "encode_image", lambda image: seen.extend(image) or encode(image))
    inferer(volume, network)
    assert len(seen) == 24  # 7 looks and 16 slices between, in groups of 8 that are filled up


def test_masks_do_not_depend_on_the_other_prompts(volume, network):
    together = _segment(volume, network, EVERY_4_MM)
    for p, prompt in enumerate(PROMPTS):
        assert torch.equal(
            together[:, p : p + 1].as_tensor(), _segment(volume, network, EVERY_4_MM, prompt).as_tensor()
        )


@pytest.mark.parametrize(
    "settings", [{"existence": ExistenceGate(0.0)}, {"existence": ExistenceGate(0.05)}, {"precision": "plain"}]
)
def test_every_slice_where_the_gate_would_not_empty_them_or_groups_are_off(volume, network, settings):
    found = _segment(volume, network, EVERY_4_MM, **settings)
    assert torch.equal(found.as_tensor(), _segment(volume, network, None, **settings))
    assert not found.meta["coarse_mm"].any(), "what the recipe allows is not what was done"


@pytest.mark.parametrize(("mm", "coarse"), [(9.0, None), (1.0, EVERY_4_MM)])
def test_looks_are_as_far_apart_as_the_slices_axis_says(volume, network, mm, coarse):
    affine = torch.diag(torch.tensor([mm, 10 - mm, 10 - mm, 1.0]))
    turned = MetaTensor(volume.as_tensor().movedim(-1, 2), affine=affine)
    found = _segment(turned, network, EVERY_4_MM, spatial_dim=0).as_tensor()
    assert torch.equal(found.movedim(2, -1), _segment(volume, network, coarse).as_tensor())


def test_without_a_known_spacing_every_slice_is_looked_at(volume, network):
    plain = volume.as_tensor()
    assert torch.equal(_segment(plain, network, EVERY_4_MM), _segment(plain, network, None))


def test_the_recipe_says_for_what():
    content = {"trained_on": {"objects": {"liver": ["liver", "hepatic organ in abdominal CT"], "nodule": ["nodule"]}}}
    with pytest.raises(InputError, match="calibrate"):
        coarse_pass_of(Recipe(content), 5.0)
    assert coarse_pass_of(Recipe(content)) == CoarsePass()
    stated = Recipe({**content, "coarse": {"mm": 8.0, "objects": ["liver"]}})
    assert coarse_pass_of(stated) == CoarsePass(8.0, frozenset({"liver", "hepatic organ"}))
    assert coarse_pass_of(stated, 0.0).steps(["liver"], 1.0) == [1]
    with pytest.raises(InputError, match="coarse_mm"):
        coarse_pass_of(stated, -1.0)


def test_where_slices_are_not_evenly_spaced_every_one_is_looked_at(volume, network):
    heights = torch.cat((torch.arange(12.0), torch.arange(12.0, 23.0) + 40))
    places = torch.nn.functional.pad(heights[:, None], (2, 0))
    whole = MetaTensor(volume.as_tensor(), affine=volume.affine, meta={PLACES: places})
    assert torch.equal(_segment(whole, network, EVERY_4_MM).as_tensor(), _segment(volume, network, None).as_tensor())
