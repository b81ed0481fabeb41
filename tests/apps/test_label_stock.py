"""MONAI Label's own `monaibundle` app with this bundle as it is: real server, real client. Run by `make test-label`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.data.prompts import parse_prompts
from boltzformer.inference.api import Segmenter
from boltzformer.recipe import read_recipe
from boltzformer.weights import state_digest

from tests.apps.label_server import free_port, label_command, served, shipped_network_weights
from tests.support import BUNDLE, body, save_nifti

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label")
pytestmark = pytest.mark.slow

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (40, 36, 4)
NAME = "boltzformer"


def load(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app as MONAI Label gives it, with the bundle and random weights in its model folder."""
    folder = tmp_path_factory.mktemp("stock")
    # what `monailabel apps --download --name monaibundle` does, without a start of its own
    installed = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
    shutil.copytree(installed, folder / "monaibundle", ignore=shutil.ignore_patterns("logs", "model", "__pycache__"))
    target = folder / "monaibundle" / "model" / NAME
    unwanted = shutil.ignore_patterns("model.pt", "runs", "cache", "__pycache__")
    shutil.copytree(BUNDLE, target, ignore=unwanted)
    shipped_network_weights(target / "models" / "model.pt")
    return target


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for index, name in enumerate("abc"):
        save_nifti(folder / f"{name}.nii.gz", body(SHAPE, index), AFFINE)
    return folder


@pytest.fixture(scope="module")
def client(model: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory):
    port = free_port()
    command = label_command("start_server", "--app", str(model.parents[1]), "--studies", str(studies))
    command += ["--conf", "models", NAME, "--conf", "zoo_source", "ngc", "--conf", "sam2", "false"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with served(command, port, tmp_path_factory.mktemp("log") / "server.log") as client:
        yield client


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return Segmenter.load(model / "models" / "model.pt", device="cpu")


def test_the_prompt_is_offered(client):
    options = client.info()["models"][NAME]["config"]
    assert options["prompt"] == ""
    assert {"modality", "body_part"} <= set(options)


@pytest.mark.parametrize("typed", [None, "left parotid gland in head and neck CT", "larynx; lung nodule in chest CT"])
def test_a_label_map_is_the_command_lines_voxel_for_voxel(client, segmenter, studies, typed):
    params = {"device": "cpu", "result_extension": ".nii.gz", **({} if typed is None else {"prompt": typed})}
    file, _ = client.infer(NAME, "a", params)
    if typed is None:
        listed = json.loads((BUNDLE / "configs" / "prompts.json").read_text())
        typed = "; ".join(entry["prompt"] for entry in listed)
    expected = segmenter.segment(studies / "a.nii.gz", parse_prompts(typed))
    assert np.array_equal(load(file), expected.label_map)
    assert expected.label_map.any()
    assert np.allclose(nib.load(file).affine, AFFINE)


def test_a_prompt_is_not_evaluated(client, segmenter, studies, tmp_path):
    trap = tmp_path / "executed"
    typed = f"$open('{trap}', 'w').close() or 'liver'"
    file, _ = client.infer(NAME, "a", {"device": "cpu", "result_extension": ".nii.gz", "prompt": typed})
    assert not trap.exists()
    assert np.array_equal(load(file), segmenter.segment(studies / "a.nii.gz", typed).label_map)


def test_training_from_labelled_pairs_and_inference_with_the_new_weights(client, model, studies, tmp_path):
    weights = model / "models" / "model.pt"
    before = read_recipe(weights)
    for index, name in enumerate("ab"):
        label = (body(SHAPE, index) > 100).astype(np.uint8)
        path = save_nifti(tmp_path / f"{name}.nii.gz", label, AFFINE)
        client.save_label(name, str(path), "final", {"label_info": [{"name": "lesion", "idx": 1}]})
    client.train_start(
        NAME, {"device": "cpu", "max_epochs": 1, "val_split": 0.5, "pretrained": True, "multi_gpu": False}
    )
    status = _wait_for_training(client)
    assert status["status"] == "DONE", status
    after = read_recipe(weights)
    assert after["sha256"] != before["sha256"]
    assert after["network"] == before["network"]
    first = json.loads((BUNDLE / "configs" / "prompts.json").read_text())[0]["prompt"]
    file, _ = client.infer(NAME, "c", {"device": "cpu", "result_extension": ".nii.gz", "prompt": first})
    trained = Segmenter.load(weights, device="cpu")
    assert state_digest(dict(trained.network.state_dict())) == after["sha256"]
    assert np.array_equal(load(file), trained.segment(studies / "c.nii.gz", first).label_map)


def _wait_for_training(client) -> dict:
    import time

    for _ in range(900):
        status = client.train_status()
        if status["status"] in ("DONE", "ERROR", "STOPPED"):
            return status
        time.sleep(1)
    return status
