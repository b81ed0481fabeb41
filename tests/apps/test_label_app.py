"""The app of this bundle in a real MONAI Label server, by MONAI Label's own client. Run by `make test-label`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from boltzformer.apps.label_app.requests import InferRequest
from boltzformer.inference.api import Segmenter
from boltzformer.recipe import read_recipe
from boltzformer.volumes.write import Grid

from tests.apps.label_server import free_port, served, shipped_network_weights
from tests.support import body, save_nifti

pytest.importorskip("monailabel", reason="MONAI Label has an environment of its own: make test-label")
pytestmark = pytest.mark.slow

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (40, 36, 4)
MODEL = "boltzformer"
KNOWN = ["left parotid gland in head and neck CT", "larynx"]
NIFTI = {"result_extension": ".nii.gz"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_network_weights(tmp_path_factory.mktemp("weights") / "model.pt")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for index, name in enumerate("abc"):
        save_nifti(folder / f"{name}.nii.gz", body(SHAPE, index), AFFINE)
    (folder / "broken.nii.gz").write_bytes(b"no volume")
    return folder


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def client(weights: Path, studies: Path, work_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    port = free_port()
    command = [sys.executable, "-m", "boltzformer", "label-server", str(studies), "--port", str(port)]
    command += ["--weights", str(weights), "--work-dir", str(work_dir), "--device", "cpu"]
    with served(command, port, tmp_path_factory.mktemp("log") / "server.log") as client:
        yield client


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> Segmenter:
    return Segmenter.load(weights, device="cpu")


def refused(client, image: str, params: dict) -> str:
    """The reason that the server gives with its 400."""
    from monailabel.client.client import MONAILabelClientException

    with pytest.raises(MONAILabelClientException) as caught:
        client.infer(MODEL, image, params)
    message = str(caught.value.msg)
    assert message.startswith("Status: 400;"), message
    return message


def test_known_terms_of_the_weights_are_suggested(client):
    model = client.info()["models"][MODEL]
    assert model["config"]["known_prompt"] == ["", *KNOWN]
    assert model["labels"] == {prompt: value for value, prompt in enumerate(KNOWN, start=1)}


def test_segments_are_named_after_the_prompts(client, segmenter, studies):
    prompts = ["lung nodule in chest CT", "larynx"]
    file, told = client.infer(MODEL, "a", {**NIFTI, "prompt": "; ".join(prompts)})
    expected = segmenter.segment(studies / "a.nii.gz", prompts)
    found = nib.load(file)
    assert np.array_equal(np.asarray(found.dataobj), expected.label_map)
    assert np.array_equal(found.affine, nib.load(studies / "a.nii.gz").affine)
    present = set(np.unique(expected.label_map)) - {0}
    assert present
    assert told["label_names"] == {prompts[value - 1]: value for value in present}
    assert [finding["prompt"] for finding in told["findings"]] == prompts
    assert [finding["nearest_known"]["far"] for finding in told["findings"]] == [True, False]
    taken_as, far = told["warnings"]
    assert "taken as CT" in taken_as
    assert far.startswith(f"prompt '{prompts[0]}' is far")


def test_slicers_and_ohifs_request_is_answered_in_nrrd(client, segmenter, studies):
    file, _ = client.infer(
        MODEL, "a", {"prompt": "larynx", "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    )
    image = sitk.ReadImage(file)
    assert image.GetPixelID() == sitk.sitkUInt8
    source = sitk.ReadImage(str(studies / "a.nii.gz"))
    assert np.allclose(image.GetDirection(), source.GetDirection())
    assert np.allclose(image.GetOrigin(), source.GetOrigin())
    assert np.allclose(image.GetSpacing(), source.GetSpacing())
    expected = segmenter.segment(studies / "a.nii.gz", "larynx").label_map
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), expected)


def test_without_a_prompt_all_known_objects_are_segmented(client):
    _, told = client.infer(MODEL, "a", NIFTI)
    asked = [finding["prompt"] for finding in told["findings"]]
    assert asked == KNOWN


def test_a_prompt_is_not_evaluated(client, tmp_path):
    trap = tmp_path / "executed"
    prompt = f"$open('{trap}', 'w').close() or 'liver'"
    _, told = client.infer(MODEL, "a", {**NIFTI, "prompt": prompt})
    assert told["findings"][0]["prompt"] == prompt
    assert not trap.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_an_answer_leaves_no_file_open(studies):
    from boltzformer.apps.label_app.infer_task import _write

    grid = Grid.of_path(studies / "a.nii.gz")
    answer = SimpleNamespace(label_map=np.zeros(SHAPE, np.uint8))
    before = len(os.listdir("/proc/self/fd"))
    file = _write(answer, grid, InferRequest(()))  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
    assert nib.load(file).shape == SHAPE
    file.unlink()


@pytest.mark.parametrize(
    ("image", "params", "said"),
    [
        ("a", {"prompt": 7}, "prompt: expected text"),
        ("a", {"prompt": "larynx; larynx"}, "occurs twice"),
        ("a", {"prompt": "larynx", "modality": "smoke"}, "'smoke' is not known"),
        ("a", {"prompt": "larynx", "result_extension": ".exe"}, "result_extension"),
        ("none", {"prompt": "larynx"}, "not among the studies"),
        ("broken", {"prompt": "larynx"}, "broken.nii.gz"),
    ],
)
def test_bad_input_is_answered_with_400_and_the_reason(client, image, params, said):
    assert said in refused(client, image, params)


def test_labels_that_were_saved_train_the_network_which_then_answers(client, work_dir, weights, studies, tmp_path):
    before = weights.read_bytes()
    for index, name in enumerate("ab"):
        path = save_nifti(tmp_path / f"{name}.nii.gz", (body(SHAPE, index) > 100).astype(np.uint8), AFFINE)
        client.save_label(name, str(path), "final", {"label_info": [{"name": "bright spot", "idx": 1}]})
    client.train_start(MODEL, {"max_epochs": 1, "val_split": 0.5, "learning_rate": 1e-3})
    assert _wait_for_training(client)["status"] == "DONE"
    trained = work_dir / "model" / "model.pt"
    objects = read_recipe(trained)["trained_on"]["objects"]
    assert objects["bright spot"] == ["bright spot"]
    assert "larynx" in objects
    assert weights.read_bytes() == before
    assert "bright spot" in client.info()["models"][MODEL]["config"]["known_prompt"]
    file, _ = client.infer(MODEL, "c", {**NIFTI, "prompt": "bright spot"})
    expected = Segmenter.load(trained, device="cpu").segment(studies / "c.nii.gz", "bright spot")
    assert np.array_equal(np.asarray(nib.load(file).dataobj), expected.label_map)


def _wait_for_training(client) -> dict:
    import time

    for _ in range(900):
        status = client.train_status()
        if status["status"] in ("DONE", "ERROR", "STOPPED"):
            return status
        time.sleep(1)
    return status
