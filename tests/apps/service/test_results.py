"""What the service gives back: the masks of the command line and the Python API, bit for bit."""

from __future__ import annotations

import gzip
import io
import json
import time

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from boltzformer.apps.service.app import make_app
from boltzformer.apps.service.work import areas
from boltzformer.inference.api import Segmenter
from fastapi.testclient import TestClient

from tests.apps.conftest import segment, shell  # noqa: F401
from tests.apps.service.conftest import ALGORITHM, send, wait
from tests.support import BUNDLE, small_network, write_json
from tests.volumes.small_series import straight, write_small_series

PROMPTS = ["lung nodule in chest CT", "liver"]
HEAD = {"network_def#existence": True}


def array(content: bytes) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


def test_service_command_line_and_python_give_the_same_bits(client, scan, segmenter, segment, tmp_path):  # noqa: F811
    told = wait(client, send(client, scan, prompt=PROMPTS))
    assert told["state"] == "done", told
    done = segment(scan, *PROMPTS, "-o", tmp_path, "--modality", "CT")
    assert done.exit_code == 0, done.output
    in_python = segmenter.segment(scan, PROMPTS, modality="CT")
    assert any(mask.any() for mask in in_python.masks.values())
    for name, mask in in_python.masks.items():
        served = client.get(f"/api/jobs/{told['id']}/files/scan/{name}.nii.gz").content
        written = (tmp_path / "ct" / f"{name}.nii.gz").read_bytes()
        assert served == written  # header and all
        assert np.array_equal(array(served), mask)
    served = client.get(f"/api/jobs/{told['id']}/files/scan.nii.gz").content
    assert served == (tmp_path / "ct.nii.gz").read_bytes()
    assert np.array_equal(array(served), in_python.label_map)


def test_numbers_of_a_scan(client, scan, segmenter):
    told = wait(client, send(client, scan, prompt=PROMPTS))
    masks = segmenter.segment(scan, PROMPTS, modality="CT").mask_array
    assert (told["plane"], told["slices"], told["slices_done"], told["shape"]) == ("axial", 4, 4, [24, 20, 4])
    assert told["window"] == [-160, 240]
    for finding, mask in zip(told["findings"], masks, strict=True):
        assert finding["voxels"] == mask.sum()
        assert finding["millilitres"] == pytest.approx(mask.sum() * 3 / 1000)
        assert finding["square_millimetres"] == mask.sum(axis=(0, 1)).tolist()
        assert finding["existence"] is None
    summary = client.get(f"/api/jobs/{told['id']}/files/scan.summary.json").json()
    assert summary["algorithm"]["weights_sha256"] == ALGORITHM.weights_sha256
    assert summary["algorithm"]["computation"] == "float32, in groups of 8 slices"
    assert "image.nii.gz" not in told["files"]


def test_areas_run_along_ras_whatever_the_storage():
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[:2, 0, 1] = 1
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    assert areas(mask, affine, 2) == [0, 12, 0, 0, 0, 0]
    turned = affine @ nib.orientations.inv_ornt_aff([[0, 1], [1, 1], [2, -1]], mask.shape)
    assert areas(mask[:, :, ::-1], turned, 2) == [0, 12, 0, 0, 0, 0]
    swapped = affine[:, [2, 1, 0, 3]]
    assert areas(mask.transpose(2, 1, 0), swapped, 2) == [0, 12, 0, 0, 0, 0]
    assert areas(mask, affine, 0) == [12, 12, 0, 0]


def test_dicom_folder_gives_an_image_and_dicom_seg(client, tmp_path):
    hd = pytest.importorskip("highdicom")
    files = write_small_series(tmp_path / "series", straight(5))
    (tmp_path / "series" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "series" / "notes.txt").write_bytes(b"no image")
    told = wait(client, send(client, *sorted((tmp_path / "series").iterdir()), prompt=PROMPTS, modality=""))
    assert told["state"] == "done", told
    assert told["modality"] == "CT"
    image = array(client.get(f"/api/jobs/{told['id']}/files/image.nii.gz").content)
    assert image.shape == (20, 24, 5)
    assert image[0, 0].tolist() == [-24, -23, -22, -21, -20]
    seg = hd.seg.segread(io.BytesIO(client.get(f"/api/jobs/{told['id']}/files/scan.seg.dcm").content))
    assert [seg.get_segment_description(k).segment_label for k in (1, 2)] == PROMPTS
    source = pydicom.dcmread(files[0])
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    frames = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    pixels = seg.get_pixels_by_source_instance(frames, assert_missing_frames_are_empty=True)
    label = client.get(f"/api/jobs/{told['id']}/files/scan/liver.nii.gz").content
    assert np.array_equal(pixels[..., 1].transpose(2, 1, 0), array(label))


def test_existence_is_told_where_the_network_has_a_head(scan, overlay, tmp_path):
    network = small_network(**HEAD)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    files = [overlay, write_json(tmp_path / "head.json", HEAD)]
    segmenter = Segmenter.from_bundle(BUNDLE, tmp_path / "model.pt", files, device="cpu", window="soft_tissue")
    with TestClient(make_app(segmenter, ALGORITHM), base_url="http://127.0.0.1") as client:
        assert client.get("/api/info").json()["existence"] is True
        told = wait(client, send(client, scan, prompt=PROMPTS))
        turned = nib.load(scan).as_reoriented(nib.orientations.axcodes2ornt(("L", "P", "I")))
        nib.save(turned, tmp_path / "turned.nii.gz")
        downwards = wait(client, send(client, tmp_path / "turned.nii.gz", prompt=PROMPTS))
    assert told["state"] == "done", told
    assert downwards["findings"] == told["findings"], "bottom to top, whichever way the file's slices run"
    scores = segmenter.segment(scan, PROMPTS, modality="CT").existence
    assert scores.shape == (2, 4)
    for finding, expected in zip(told["findings"], scores, strict=True):
        assert finding["existence"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert finding["probability"] == pytest.approx(expected.max(), abs=1e-4)


def test_a_job_that_is_deleted_leaves_nothing(client, scan):
    told = wait(client, send(client, scan))
    url = f"/api/jobs/{told['id']}"
    assert client.get(f"{url}/files/scan.nii.gz").status_code == 200
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert client.get(f"{url}/files/scan.nii.gz").status_code == 404


def test_health_metrics_info_and_page(client):
    assert client.get("/healthz").json() == {"status": "ok", "version": "0.1.0"}
    assert client.head("/healthz").status_code == 200
    info = client.get("/api/info").json()
    assert (info["device"], info["existence"], info["limits"]["prompts"]) == ("cpu", False, 3)
    text = client.get("/metrics").text
    assert 'boltzformer_jobs_total{outcome="done"}' in text
    assert f'weights_sha256="{ALGORITHM.weights_sha256}"' in text
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css", "viewer.js", "niivue.umd.js", "icon.svg", "LICENSE.niivue.txt"):
        assert client.get(f"/page/{name}").status_code == 200, name
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert json.dumps(client.get("/openapi.json").json())


def test_results_go_when_their_time_is_over(make_client, scan):
    client = make_client(kept=1)
    first = wait(client, send(client, scan))
    second = wait(client, send(client, scan))
    for _ in range(100):
        if client.get(f"/api/jobs/{first['id']}").status_code == 404:
            break
        time.sleep(0.05)
    assert client.get(f"/api/jobs/{first['id']}").status_code == 404
    assert client.get(f"/api/jobs/{second['id']}").status_code == 200


def test_what_the_command_line_warns_of_is_told_to_the_client(client, scan, tmp_path):
    """A file that does not say which side is left, and a modality that the network has not seen."""
    image = nib.load(scan)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "of someone.nii.gz")
    told = wait(client, send(client, tmp_path / "of someone.nii.gz"))
    (note,) = [note for note in told["notes"] if "orientation" in note]
    assert note.startswith("of someone.nii.gz: ")
    assert wait(client, send(client, scan))["notes"] == []


def test_uneven_slices_are_refused_without_a_setting_that_the_service_lacks(client, tmp_path):
    positions = np.delete(straight(6), 3, axis=0)
    files = write_small_series(tmp_path / "series", positions)
    told = wait(client, send(client, *files))
    assert "not evenly spaced" in told["error"]
    assert told["error"].endswith("Complete or resample the series.")
