"""How far prompts are from what a network was trained to find, in the shipped sentence encoder's space."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from boltzformer.apps.cli import app
from boltzformer.data.prompts import make_prompts
from boltzformer.inference.api import Segmenter
from boltzformer.inference.known_terms import KnownTerms, core_of
from boltzformer.inference.prompt_distances import measure_distances
from boltzformer.networks.text_encoder import HuggingFaceTextEncoder
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically
from typer.testing import CliRunner

from tests.support import BUNDLE, body, save_nifti, small_network, write_json

THRESHOLD = 0.3  # what `boltzformer proof prompts` chooses for the shipped wordings, to a tenth


def _config(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / name).read_text())


@pytest.fixture(scope="module")
def encoder() -> HuggingFaceTextEncoder:
    return HuggingFaceTextEncoder(str(BUNDLE / "models" / "text_encoder")).eval()


@pytest.fixture(scope="module")
def known(encoder) -> KnownTerms:
    return KnownTerms(_config("wordings.json"), encoder, THRESHOLD)


@pytest.mark.parametrize(
    ("prompt", "core"),
    [
        ("outline the larynx in head and neck CT", "larynx"),
        ("Segment the left parotid gland in this CT scan", "left parotid gland"),
        ("chest CT, lung nodule", "lung nodule"),
        ("brainstem, head and neck radiotherapy planning CT", "brainstem"),
        ("stem of the brain on CT", "stem of brain"),
        ("MS lesion in T2 brain MRI", "MS lesion"),
        ("the CT", "CT"),
    ],
)
def test_what_surrounds_a_term_is_left_out(prompt, core):
    assert core_of(prompt) == core


def test_trained_and_unseen_wordings_are_near_and_other_terms_far(known):
    for name, texts in _config("wordings.json").items():
        assert all(known.nearest(text).distance < 1e-5 for text in (name, *texts))
    for name, texts in _config("wordings_unseen.json").items():
        for text in texts:
            near = known.nearest(text)
            assert not near.far, text
            assert near.term == name, text
    others = [term for terms in _config("other_terms.json").values() for term in terms]
    assert len(others) >= 60
    assert [term for term in others if not known.nearest(f"{term} in head and neck CT").far] == []


def test_the_threshold_comes_from_the_data(encoder):
    others = [term for terms in _config("other_terms.json").values() for term in terms]
    unseen = [text for texts in _config("wordings_unseen.json").values() for text in texts]
    found = measure_distances(_config("wordings.json"), unseen, others, encoder)
    assert found.threshold == pytest.approx(THRESHOLD, abs=0.05)
    assert found.rows[1]["warned"] == 0
    assert all(row["warned"] == 1 for row in found.rows[2:])
    overlapping = measure_distances({"liver": ["liver"]}, ["spleen", "liver"], ["the liver", "bicycle"], encoder)
    assert overlapping.rows[1]["warned"] < 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small network with the shipped sentence encoder, which knows two terms."""
    text = {
        "_target_": "boltzformer.networks.text_encoder.HuggingFaceTextEncoder",
        "name": str(BUNDLE / "models" / "text_encoder"),
        "frozen": True,
    }
    network = small_network(**{"network_def#text_encoder": text})
    path = tmp_path_factory.mktemp("known") / "model.pt"
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "soft_tissue", "axis": 2, "num_adjacent": 0},
        "trained_on": {"objects": {"larynx": ["voice box"], "mandible": ["lower jaw"]}},
        "thresholds": {"far_prompt": THRESHOLD},
    }
    save_atomically(network.state_dict(), path, recipe)
    return path


def test_a_far_prompt_is_named_in_log_and_sidecar(checkpoint, tmp_path, caplog):
    path = save_nifti(tmp_path / "ct.nii.gz", body((24, 24, 2)), np.eye(4))
    segmenter = Segmenter.from_bundle(BUNDLE, checkpoint, device="cpu")
    with caplog.at_level(logging.WARNING):
        result = segmenter.segment(path, ["the larynx", "bone of the upper jaw", "urinary bladder"], modality="CT")
    warned = [record.message for record in caplog.records if "nearest known term" in record.message]
    assert len(warned) == 1 + result.nearest_known["bone_of_the_upper_jaw"]["far"]
    assert "'urinary bladder'" in warned[-1]
    result.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "ct.json").read_text())["nearest_known"]
    assert written["the_larynx"] == {"term": "larynx", "wording": "larynx", "distance": 0.0, "far": False}
    assert written["bone_of_the_upper_jaw"]["term"] == "mandible"
    assert written["urinary_bladder"]["far"] is True


def test_the_command_line_says_so_too(checkpoint, tmp_path):
    path = save_nifti(tmp_path / "ct.nii.gz", body((24, 24, 2)), np.eye(4))
    prompts = write_json(tmp_path / "prompts.json", {"bladder": "urinary bladder", "jaw": "lower jaw"})
    words = ["segment", path, "--prompt-list", prompts, "-o", tmp_path / "out", "--weights", checkpoint, "--json"]
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--modality", "CT"]])
    assert done.exit_code == 0, (done.output, done.exception)
    line = next(text for text in done.stdout.splitlines() if text.startswith("{"))
    findings = {finding["name"]: finding for finding in json.loads(line)["findings"]}
    assert findings["bladder"]["nearest_known"]["far"] is True
    assert findings["jaw"]["nearest_known"]["term"] == "mandible"


def test_without_a_threshold_nothing_is_said(segmenter, tmp_path):
    assert segmenter.known is None
    path = save_nifti(tmp_path / "ct.nii.gz", body((24, 24, 2)), np.eye(4))
    assert segmenter.segment(path, "aorta", modality="CT").nearest_known is None


def test_an_object_that_an_earlier_training_alone_had_is_told(encoder, caplog):
    known = KnownTerms(_config("wordings.json"), encoder, THRESHOLD, ["larynx"])
    told = known.tell(make_prompts([("the larynx", None), ("mandible", None)]))
    assert told["the_larynx"]["earlier_only"] is True
    assert "earlier_only" not in told["mandible"]
    (record,) = caplog.records
    assert "may be forgotten" in record.getMessage()
    assert "'larynx'" in record.getMessage()
