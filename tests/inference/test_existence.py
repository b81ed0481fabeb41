"""The existence score: from the network to a gated mask, the sidecar and the evaluation."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.data.prompts import Prompt
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.existence import ExistenceGate
from boltzformer.inference.slice_inferer import PromptedSliceInferer
from boltzformer.inference.slices import BLANK_LOGIT
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from monai.data import MetaTensor

from tests.support import BUNDLE, SMALL_NETWORK, body, run_inference, save_nifti, small_network, write_json

PROMPTS = ["liver in abdominal CT", "aorta"]


@pytest.fixture(scope="module")
def scoring():
    return small_network(**{"network_def#existence": True})


@pytest.fixture(scope="module")
def volume():
    return MetaTensor(torch.rand(1, 1, 40, 36, 7, generator=torch.Generator().manual_seed(1)))


def test_a_gate_empties_what_is_improbable_and_no_more():
    existence = torch.tensor([[2.0, -2.0], [-4.0, 0.1]])  # two slices, two prompts
    gate = ExistenceGate(threshold=0.5)
    assert gate.keeps(existence).tolist() == [[True, False], [False, True]]
    expected = [1 / (1 + math.exp(-x)) for x in (2, -2, -4, 0.1)]
    assert gate.probability(existence).flatten().tolist() == pytest.approx(expected)


def test_temperature_changes_the_probability_and_not_the_order():
    assert ExistenceGate(None, 2.0).probability(torch.tensor([3.0])).item() == pytest.approx(1 / (1 + math.exp(-1.5)))


@pytest.mark.parametrize("threshold", [None, 0])
def test_nothing_is_emptied_without_a_threshold(threshold):
    assert ExistenceGate(threshold).keeps(torch.tensor([-50.0, 50.0])).all()


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"threshold": -0.1}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="existence_"):
        ExistenceGate(**wrong)


def test_scores_of_every_slice_travel_with_the_logits(volume, scoring):
    result = PromptedSliceInferer(PROMPTS, memory_gb=1e-9)(volume, scoring)
    assert result.meta["existence"].shape == (1, 2, 7)
    scores = result.meta["existence"][0]
    with torch.no_grad():
        for k in range(7):
            expected = scoring.predict(volume.as_tensor()[..., k], PROMPTS).existence.sigmoid()
            assert torch.allclose(scores[:, k], expected[0])
    cut = float(scores.flatten().sort().values[6:8].mean())
    gated = PromptedSliceInferer(PROMPTS, existence=ExistenceGate(cut))(volume, scoring)
    emptied = (scores < cut)[None, :, None, None]
    assert torch.equal(gated.as_tensor() > 0, (result.as_tensor() > 0) & ~emptied)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "plain"},
        {"keep_logits": False},
        {"pixel_size_mm": [1.0, 3.0], "body_view": True, "resolution_mm": 2.0},
        {"pixel_size_mm": 0.4},  # several views of a slice
        {"pixel_size_mm": 1.5},
    ],
)
def test_masks_that_the_gate_keeps_are_those_without_it(scoring, settings):
    """Masks that nobody will see are not computed."""
    image = 0.5 * torch.rand(1, 1, 40, 36, 7, generator=torch.Generator().manual_seed(1))
    image[..., :6, :, :] = 0
    image = MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 1, 2, 1])))
    settings = {"progress": False, **settings}
    whole = PromptedSliceInferer(PROMPTS, **settings)(image, scoring)
    scores = whole.meta["existence"]
    cut = float(scores.flatten().sort().values[6:8].mean())
    gated = PromptedSliceInferer(PROMPTS, existence=ExistenceGate(cut), **settings)(image, scoring)
    kept = (scores >= cut)[:, :, None, None]
    assert torch.equal(gated.meta["existence"], scores)
    if gated.dtype == torch.uint8:
        assert torch.equal(gated.as_tensor() > 0, (whole.as_tensor() > 0) & kept)
    else:
        assert torch.equal(gated.as_tensor(), torch.where(kept, whole.as_tensor(), BLANK_LOGIT))


def test_sidecar_and_evaluation_know_the_scores(tmp_path, scoring):
    torch.save(scoring.state_dict(), tmp_path / "model.pt")
    overlay = write_json(tmp_path / "small.json", {**SMALL_NETWORK, "network_def#existence": True})
    segmenter = Segmenter.from_bundle(BUNDLE, tmp_path / "model.pt", [overlay], device="cpu", window="soft_tissue")
    scan = save_nifti(tmp_path / "scan.nii.gz", body(), np.diag([-2.0, -2.0, 3.0, 1.0]))
    result = segmenter.segment(scan, [Prompt("liver in abdominal CT", "liver")])
    assert result.existence.shape == (1, 6)
    result.save(tmp_path / "masks")
    entry = json.loads((tmp_path / "masks" / "scan.json").read_text())["labels"][0]
    assert entry["probability"] == max(entry["slice_probability"])
    folder = PredictionFolder(tmp_path / "masks")
    assert folder.existence(["scan"], "liver", 2) == pytest.approx(result.existence[0].tolist(), abs=1e-6)
    assert folder.existence(["scan"], "liver", 0) is None  # slices of another axis
    assert folder.existence(["scan"], "spleen", 2) is None
    assert "slice_probability_alone" not in entry, "no slice had to agree with another"
    assert (entry["coarse_mm"], entry["agreement_mm"]) == (0, 0)
    alike = Segmenter.from_bundle(
        BUNDLE, tmp_path / "model.pt", [overlay], device="cpu", window="soft_tissue", agreement_mm=3.0
    )
    alike.segment(scan, [Prompt("liver in abdominal CT", "liver")]).save(tmp_path / "alike")
    folder = PredictionFolder(tmp_path / "alike")
    assert json.loads((tmp_path / "alike" / "scan.json").read_text())["labels"][0]["agreement_mm"] == 3.0
    averaged, alone = (
        folder.existence(["scan"], "liver", 2, key) for key in ("slice_probability", "slice_probability_alone")
    )
    assert alone == pytest.approx(result.existence[0].tolist(), abs=1e-6)
    assert averaged != alone


def test_scores_follow_the_slices_of_the_image_and_the_sidecar_says_its_order(tmp_path, scoring):
    torch.save(scoring.state_dict(), tmp_path / "model.pt")
    overlay = write_json(tmp_path / "small.json", {**SMALL_NETWORK, "network_def#existence": True})
    segmenter = Segmenter.from_bundle(BUNDLE, tmp_path / "model.pt", [overlay], device="cpu", window="soft_tissue")
    upwards = nib.Nifti1Image(body(), np.diag([2.0, 2.0, 3.0, 1.0]))
    to_it = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", "ILP")))
    turned = upwards.as_reoriented(to_it)
    one, other = (segmenter.segment(image, PROMPTS) for image in (upwards, turned))
    assert (one.slice_axis, other.slice_axis) == (2, 0)
    assert one.existence.shape == other.existence.shape == (2, 6)
    assert not np.allclose(one.existence, one.existence[:, ::-1], atol=1e-6)
    assert np.array_equal(other.existence, one.existence[:, ::-1])
    other.save(tmp_path / "masks", case="turned")
    notes = json.loads((tmp_path / "masks" / "turned.json").read_text())
    assert (notes["slice_axis"], notes["slice_order"]) == (2, "inferior to superior")
    assert notes["labels"][0]["slice_probability"] == pytest.approx(one.existence[0].tolist(), abs=1e-6)


def test_the_config_writes_the_scores_of_several_prompts(tmp_path, scoring):
    torch.save(scoring.state_dict(), tmp_path / "model.pt")
    overlay = write_json(tmp_path / "small.json", {**SMALL_NETWORK, "network_def#existence": True})
    save_nifti(tmp_path / "scan.nii.gz", body(), np.diag([-2.0, -2.0, 3.0, 1.0]))
    prompt_list = write_json(tmp_path / "prompts.json", {"one": PROMPTS[0], "two": PROMPTS[1]})
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    run_inference(overlay, tmp_path / "model.pt", scan, out, prompt_list=str(prompt_list))
    segmenter = Segmenter.from_bundle(BUNDLE, tmp_path / "model.pt", [overlay], device="cpu", window="soft_tissue")
    result = segmenter.segment(scan, PROMPTS)
    notes = json.loads((tmp_path / "out" / "scan.json").read_text())
    result.save(tmp_path / "saved")
    own = json.loads((tmp_path / "saved" / "scan.json").read_text())
    names = [entry.pop("name") for listed in (notes["labels"], own["labels"]) for entry in listed]
    assert names[:2] == ["one", "two"]
    assert own == notes, "the API tells the same of weights, seed and settings"
    assert len(own["sha256"]) == 64
    segmenter.segment(scan, PROMPTS, window=(-100, 300)).save(tmp_path / "saved", case="windowed")
    assert json.loads((tmp_path / "saved" / "windowed.json").read_text())["window"] == [-100, 300]
    entries = notes["labels"]
    for entry, scores in zip(entries, result.existence.tolist(), strict=True):
        assert entry["slice_probability"] == pytest.approx(scores, abs=1e-6)
