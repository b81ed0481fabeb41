"""What the MONAI Label app makes of requests; no MONAI Label is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from boltzformer.apps import label_server
from boltzformer.apps.label_app.requests import (
    label_names,
    read_request,
    read_train_request,
    suggested_prompts,
    training_items,
)
from boltzformer.apps.serve import suggestions
from boltzformer.data.cases import load_cases
from boltzformer.data.prompts import make_prompts, read_prompt_list
from boltzformer.errors import InputError
from boltzformer.weights import save_atomically

from tests.support import BUNDLE, small_network, write_json

SUGGESTED = make_prompts([("liver in chest CT", None), ("aorta", None)])


def texts(request):
    return [prompt.text for prompt in read_request(request, SUGGESTED).prompts]


def test_free_text_goes_before_a_suggestion_and_both_before_all_that_is_known():
    assert texts({"prompt": "left lung; aorta ;", "known_prompt": "liver"}) == ["left lung", "aorta"]
    assert texts({"prompt": ["left lung", "aorta, descending"]}) == ["left lung", "aorta, descending"]
    assert texts({"prompt": " ", "known_prompt": "liver"}) == ["liver"]
    assert texts({"known_prompt": ["", "liver"]}) == ["liver in chest CT", "aorta"]
    assert texts({}) == ["liver in chest CT", "aorta"]


def test_a_prompt_is_data():
    prompt = "$__import__('os').getcwd() or @network#x %train lesion"
    assert texts({"prompt": prompt}) == [prompt]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prompt": 7}, "prompt: expected text"),
        ({"prompt": "42"}, "prompt, prompt 1: '42' is no text prompt"),
        ({"prompt": "aorta; AORTA"}, "occurs twice"),
        ({"prompt": "a {object}"}, "brace"),
        ({"prompt": "x" * 1001}, "1001 characters"),
        ({"prompt": "aorta", "modality": "XYZ"}, "modality 'XYZ' is not known"),
        ({"prompt": "aorta", "body_part": 3}, "body_part"),
        ({"prompt": "aorta", "result_extension": "/../x"}, "result_extension"),
        ({"prompt": "aorta", "result_dtype": "object"}, "result_dtype"),
        ({"prompt": "; ".join(f"lesion {n}" for n in range(300))}, ""),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(request_, said):
    if not said:  # as many prompts as fit no label map: refused where they are segmented
        assert len(texts(request_)) == 300
        return
    with pytest.raises(InputError, match=said):
        read_request(request_, SUGGESTED)


def test_names_are_those_of_the_values_that_are_there():
    label_map = np.zeros((2, 2, 2), np.uint8)
    assert label_names(label_map, SUGGESTED) == {}
    label_map[0] = 2
    assert label_names(label_map, SUGGESTED) == {"aorta": 2}


def test_suggestions_are_the_objects_that_the_weights_were_trained_with(tmp_path):
    network = small_network()
    save_atomically(network.state_dict(), tmp_path / "bare.pt")
    assert suggested_prompts(tmp_path / "bare.pt") == read_prompt_list(BUNDLE / "configs" / "prompts.json")
    objects = {"liver": ["liver in chest CT", "liver"], "left lung": ["left lung"], "nothing": []}
    recipe = {"network": network.definition, "trained_on": {"objects": objects}}
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    assert [prompt.text for prompt in suggested_prompts(tmp_path / "model.pt")] == ["liver in chest CT", "left lung"]
    assert suggestions(tmp_path / "model.pt") == ["liver in chest CT", "left lung"]
    recipe["trained_on"]["earlier_only"] = ["liver"]
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    assert [prompt.text for prompt in suggested_prompts(tmp_path / "model.pt")] == ["left lung"]
    assert suggestions(tmp_path / "model.pt") == ["left lung"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"max_epochs": 0}, "max_epochs: expected a whole number from 1"),
        ({"max_epochs": "many"}, "max_epochs"),
        ({"max_epochs": 1.5}, "max_epochs"),
        ({"val_split": -1}, "val_split"),
        ({"val_split": float("nan")}, "val_split"),
        ({"learning_rate": "$1"}, "learning_rate"),
    ],
)
def test_a_bad_training_request_is_refused(request_, said):
    with pytest.raises(InputError, match=said):
        read_train_request(request_)


def test_labels_become_a_datalist_whose_prompts_are_the_segments_names(tmp_path):
    pairs = []
    for name in "ab":
        pair = {kind: tmp_path / f"{name}_{kind}.nii.gz" for kind in ("image", "label")}
        for path in pair.values():
            path.touch()
        pairs.append({**pair, "segments": [{"name": "left lung", "idx": 1}, {"name": "a nodule; small", "idx": 2}]})
    items = training_items(pairs, "CT")
    cases = load_cases(write_json(tmp_path / "datalist.json", {"training": items}), validation_share=0.5)
    assert cases[0]["objects"] == {1: "left lung", 2: "a nodule; small"}
    assert cases[0]["prompts"] == {1: ["left lung"], 2: ["a nodule; small"]}
    assert cases[0]["modality"] == "CT"
    with pytest.raises(InputError, match="label at least two"):
        training_items(pairs[:1])
    with pytest.raises(InputError, match=r"b_label.*no names"):
        training_items([pairs[0], {**pairs[1], "segments": None}])
    with pytest.raises(InputError, match="expected segments with"):
        training_items([pairs[0], {**pairs[1], "segments": [{"name": "x", "idx": 0}]}])


def test_how_the_server_is_started(tmp_path, monkeypatch):
    studies, weights = tmp_path / "studies", tmp_path / "model.pt"
    studies.mkdir()
    weights.write_bytes(b"weights")
    monkeypatch.setattr(label_server.importlib.util, "find_spec", lambda name: object())
    command = label_server.server_command(str(studies), weights, tmp_path / "work", port=9000)
    assert command[:4] == [sys.executable, "-m", "monailabel.main", "start_server"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert (tmp_path / "work" / "main.py").read_text() == label_server.APP.read_text()
    label_server.server_command(str(studies), weights, tmp_path / "work")  # a second start replaces its own file
    (tmp_path / "work" / "main.py").write_text("print('mine')")
    with pytest.raises(InputError, match="is not ours"):
        label_server.server_command(str(studies), weights, tmp_path / "work")
    with pytest.raises(InputError, match="no such folder"):
        label_server.server_command(str(tmp_path / "none"), weights, tmp_path / "other")
    with pytest.raises(InputError, match="no weights at"):
        label_server.server_command(str(studies), tmp_path / "none.pt", tmp_path / "other")


@pytest.mark.skipif(os.name != "posix", reason="a process cannot become another one elsewhere")
def test_the_server_ends_with_its_command():
    """It is the same process, so that none is left behind that holds the port."""
    start = "from boltzformer.apps.label_server import _become; import os, sys; print(os.getpid()); "
    start += "_become([sys.executable, '-c', 'import os; print(os.getpid())'], dict(os.environ))"
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    assert first == second


def test_weights_that_were_trained_here_before_are_told(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(label_server.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(label_server, "_become", lambda *_: 0)
    weights = tmp_path / "better.pt"
    weights.write_bytes(b"weights")
    arguments = ["label-server", tmp_path, "--weights", weights, "--work-dir", tmp_path / "work"]
    assert "answers" not in shell(*arguments).output
    trained = label_server.trained_weights(tmp_path / "work")
    trained.parent.mkdir()
    trained.write_bytes(b"weights")
    said = " ".join(shell(*arguments).output.split())
    assert f"{trained}, which was trained here, answers, and not {weights}" in said


def test_without_monai_label_the_command_says_how_to_install_it(shell, tmp_path, monkeypatch):
    monkeypatch.setattr(label_server.importlib.util, "find_spec", lambda name: None)
    done = shell("label-server", tmp_path, "--work-dir", tmp_path / "work")
    assert done.exit_code == 2
    assert "constraints-label.txt" in done.output
