"""The inference config as MONAI Label and MONAI Deploy use it: its keys alone, from anywhere, with prompts as data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from boltzformer.error_report import find_input_error
from boltzformer.inference.api import Segmenter
from boltzformer.volumes.sources import open_volume
from boltzformer.weights import load_weights
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from tests.support import BUNDLE, body, save_nifti

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
PROMPTS = "liver in chest CT; lung nodule"


@pytest.fixture
def program(weights: Path, overlay: Path, monkeypatch, tmp_path):
    """Runs an item through the keys that these programs read, in a directory that is not the bundle's."""
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "inference.json"), str(overlay)])
    parser.update({"checkpoint": str(weights), "device": "cpu", "window": "soft_tissue"})
    network = parser.get_parsed_content("network_def").eval()
    load_weights(network, weights)
    preprocessing, inferer, postprocessing = (
        parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "postprocessing")
    )

    def run(item):
        item = preprocessing(item)
        item["pred"] = inferer(inputs=item["image"][None], network=network)[0]
        return postprocessing(item)

    return run


def test_the_prompt_of_a_request_is_listed_and_referred_to_nowhere():
    text = (BUNDLE / "configs" / "inference.json").read_text()
    assert json.loads(text)["displayable_configs"]["prompt"] == ""
    assert "@displayable_configs" not in text
    assert "%displayable_configs" not in text


def test_prompts_of_a_request_give_one_label_map_the_same_as_the_apis(program, segmenter: Segmenter, tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", body((24, 20, 4)), AFFINE)
    found = program({"image": str(path), "prompt": PROMPTS})["pred"]
    expected = segmenter.segment(path, ["liver in chest CT", "lung nodule"])
    assert found.dtype == torch.uint8
    assert found.shape == (1, 24, 20, 4)
    assert np.array_equal(found[0].numpy(), expected.label_map)
    assert expected.label_map.any()


def test_a_prompt_is_never_evaluated(program, tmp_path):
    trap = tmp_path / "executed"
    path = save_nifti(tmp_path / "a.nii.gz", body((24, 20, 4)), AFFINE)
    for start in ("$", "@", "%", "#"):
        program({"image": str(path), "prompt": f"{start}open('{trap}', 'w').close() or 'liver'"})
    assert not trap.exists()


def test_without_a_prompt_the_bundles_list_is_taken_from_any_directory(program, segmenter, tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", body((24, 20, 4)), AFFINE)
    listed = [entry["prompt"] for entry in json.loads((BUNDLE / "configs" / "prompts.json").read_text())]
    found = program({"image": str(path), "prompt": "", "modality": "", "body_part": ""})["pred"]
    assert np.array_equal(found[0].numpy(), segmenter.segment(path, listed).label_map)


def test_a_volume_in_memory_comes_with_its_affine(program, segmenter, tmp_path):
    array = body((24, 20, 4))
    image = MetaTensor(
        torch.from_numpy(array), affine=torch.from_numpy(AFFINE), meta={"space": "RAS", "modality": "CT"}
    )
    output = program({"image": image, "prompt": PROMPTS})
    expected = segmenter.segment(image, ["liver in chest CT", "lung nodule"])
    assert np.array_equal(output["pred"][0].numpy(), expected.label_map)
    assert np.allclose(output["pred"].affine, AFFINE)


def test_modality_and_body_part_in_memory_may_have_dicoms_names():
    meta = {"space": "RAS", "Modality": "CT", "BodyPartExamined": "BRAIN"}
    volume = open_volume(MetaTensor(torch.zeros(4, 4, 2), affine=torch.from_numpy(AFFINE), meta=meta))
    assert (volume.modality, volume.body_part) == ("CT", "BRAIN")


@pytest.mark.parametrize("prompt", [7, {"text": "liver"}, "1; 2", "liver; LIVER"])
def test_a_bad_prompt_is_an_input_error(program, prompt, tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", body((24, 20, 4)), AFFINE)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        program({"image": str(path), "prompt": prompt})
    assert find_input_error(caught.value) is not None
