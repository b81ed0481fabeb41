"""The Python API."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from boltzformer.data.prompts import Prompt
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.masks import MasksFromLogitsd, combine_masks
from monai.transforms import Compose

from tests.support import BUNDLE, SMALL_NETWORK, SMALL_PARTS, body, save_nifti, write_json


def test_masks_probabilities_and_label_map(segmenter):
    result = segmenter.segment(body(), [Prompt("liver in abdominal CT", "liver"), "a nodule"])
    assert list(result.masks) == ["liver", "a_nodule"]
    for name, mask in result.masks.items():
        assert mask.dtype == np.uint8
        assert mask.shape == body().shape
        assert np.array_equal(mask == 1, result.probabilities[name] >= 0.5)
    liver, nodule = result.probabilities.values()
    expected = np.where(np.maximum(liver, nodule) < 0.5, 0, np.where(liver >= nodule, 1, 2))
    assert np.array_equal(result.label_map, expected)
    assert np.array_equal(result.affine, np.eye(4))


def test_same_volume_prompt_and_seed_are_bit_identical(segmenter):
    first, second = (segmenter.segment(body(), "nodule").probabilities["nodule"] for _ in range(2))
    assert np.array_equal(first, second)


def test_array_and_file_agree(segmenter, tmp_path):
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])
    path = save_nifti(tmp_path / "scan.nii.gz", body(), affine)
    from_file, from_array = segmenter.segment(path, "nodule"), segmenter.segment(body(), "nodule", affine=affine)
    assert np.array_equal(from_file.label_map, from_array.label_map)
    from_array.save(tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "volume.json").read_text())
    assert notes["labels"][0]["voxels"] == int(from_array.masks["nodule"].sum())


def test_relative_overlay_and_override(weights, tmp_path):
    segmenter = Segmenter.from_bundle(BUNDLE, weights, ["configs/ablation/queries_10.json"], "cpu", **SMALL_PARTS)
    assert segmenter.inferer.memory_gb == 2.0
    assert segmenter.network.decoder.num_queries == 4


@pytest.mark.parametrize(
    ("image", "prompts", "message"),
    [
        ("absent.nii.gz", "nodule", "absent.nii.gz: no such file"),
        (body(), "", "prompt is empty"),
        (body(), [], "holds no prompt"),
        (body(), ["liver", "Liver"], "occurs twice"),
        (body(), {"mask": "liver"}, "list of texts"),
        (np.full((4, 4, 4), np.nan), "nodule", "the array"),
        (np.zeros((4, 4)), "nodule", "3 dimensions"),
    ],
)
def test_bad_input(segmenter, image, prompts, message):
    with pytest.raises(InputError, match=message):
        segmenter.segment(image, prompts)


def test_weights_of_another_network(weights):
    with pytest.raises(InputError, match="belongs to another network"):
        Segmenter.from_bundle(BUNDLE, weights, device="cpu", **{**SMALL_PARTS, "network_def#dim": 64})


def test_no_bundle_there(tmp_path):
    with pytest.raises(InputError, match=r"inference\.json: no such file"):
        Segmenter.from_bundle(tmp_path)


def test_too_many_prompts_for_one_map():
    import torch

    with pytest.raises(InputError, match="256 prompts do not fit"):
        combine_masks(torch.zeros(256, 1, 1, 1))


def test_ties_go_to_the_first_prompt():
    import torch

    logits = torch.tensor([[-1.0, 0.0, 2.0, -3.0], [-2.0, 0.0, 2.0, 1.0]]).view(2, 4, 1, 1)
    assert combine_masks(logits).flatten().tolist() == [0, 1, 1, 2]


def test_overlay_file_outside_the_bundle(weights, tmp_path):
    overlay = write_json(tmp_path / "mine.json", SMALL_NETWORK)
    assert Segmenter.from_bundle(BUNDLE, weights, [overlay], "cpu").segment(body((16, 16, 2)), "x", modality="CT")


def test_logits_are_kept_where_asked_for(segmenter):
    """The masks are the same; only probabilities need the logits, which are most of a result's memory."""
    kept = segmenter.segment(body(), ["nodule", "liver"])
    steps = [copy.copy(step) for step in segmenter.postprocessing.transforms]
    for step in steps:
        if isinstance(step, MasksFromLogitsd):
            step.keep_logits = False
    lean = Segmenter(segmenter.network, segmenter.preprocessing, segmenter.inferer, Compose(steps))
    found = lean.segment(body(), ["nodule", "liver"])
    assert np.array_equal(found.mask_array, kept.mask_array)
    assert np.array_equal(found.label_map, kept.label_map)
    assert "logits" not in found.item
    with pytest.raises(InputError, match="keep_logits"):
        _ = found.probabilities


def test_the_bar_is_switched_where_the_network_is_built(weights, overlay):
    usual, quiet = (
        Segmenter.from_bundle(BUNDLE, weights, [overlay], device="cpu", **given) for given in ({}, {"progress": False})
    )
    assert (usual.inferer.progress, quiet.inferer.progress) == (True, False)
