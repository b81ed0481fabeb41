"""Nothing lost, nothing silent: what inference must refuse, name or keep."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from boltzformer.data.prompts import Prompt
from boltzformer.error_report import find_input_error, reason_of
from boltzformer.errors import InputError, PartialFailure
from boltzformer.inference.api import Segmenter
from boltzformer.inference.inputs import find_volumes
from boltzformer.inference.masks import SaveMasks

from tests.inference.test_run import AFFINE, infer, scans  # noqa: F401
from tests.support import BUNDLE, body, raises_input_error, save_nifti, write_json

SMALL = body((24, 20, 4))


def test_output_folder_is_input_folder(infer, tmp_path):  # noqa: F811
    scan = save_nifti(tmp_path / "out" / "ct.nii.gz", SMALL, AFFINE)
    (tmp_path / "out" / "ct.json").write_text('{"EchoTime": 1}')
    before = scan.read_bytes()
    with raises_input_error(r"out: holds the input .*ct\.nii\.gz; name an output_dir of its own"):
        infer(scan)
    assert scan.read_bytes() == before
    assert (tmp_path / "out" / "ct.json").read_text() == '{"EchoTime": 1}'
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ct.json", "ct.nii.gz"]


def test_through_a_link_and_through_the_api(infer, segmenter, tmp_path):  # noqa: F811
    scan = save_nifti(tmp_path / "in" / "ct.nii.gz", SMALL, AFFINE)
    before = scan.read_bytes()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    with raises_input_error("holds the input"):
        infer(scan)
    result = segmenter.segment(scan, "nodule")
    with pytest.raises(InputError, match="is an input"):
        result.save(tmp_path / "in")
    with pytest.raises(InputError, match="is an input"):
        result.save(tmp_path / "out")
    assert scan.read_bytes() == before


def test_a_users_file_in_the_output_folder_is_kept_and_said_before_the_work(infer, scans, tmp_path, caplog):  # noqa: F811
    mine = save_nifti(tmp_path / "out" / "b.nii.gz", np.ones((2, 2, 2), np.uint8), AFFINE)
    before = mine.read_bytes()
    with caplog.at_level("INFO"), raises_input_error(r"b\.nii\.gz: is there already and was not written"):
        infer(scans)
    assert mine.read_bytes() == before
    assert "volume 1/3" not in caplog.text
    mine.unlink()
    infer(scans)
    infer(scans)  # over its own results


def test_manifest_of_a_run_with_failures(infer, scans, weights, tmp_path):  # noqa: F811
    (scans / "b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes()[:200])
    (scans / "d.nii.gz").symlink_to(tmp_path / "annex")
    (scans / "._a.nii.gz").write_bytes(b"resource fork")
    with pytest.raises(RuntimeError) as caught:
        infer(scans)
    assert isinstance(find_input_error(caught.value), PartialFailure)
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [content[key] for key in ("asked", "done", "failed", "skipped")] == [5, 2, 2, 1]
    found = {entry["name"]: entry for entry in content["entries"]}
    assert {name: entry["status"] for name, entry in found.items()} == {
        **{"a": "done", "b": "failed", "c": "done", "d": "failed", "._a.nii.gz": "skipped"}
    }
    assert "truncated" in found["b"]["reason"]
    assert "is a link to" in found["d"]["reason"]
    outputs = [output["path"] for output in found["a"]["outputs"]]
    assert outputs == [
        "a/one.nii.gz",
        "a/two.nii.gz",
        "a.nii.gz",
        "a.json",
        "a.png",
    ]
    assert found["a"]["path"] == found["a"]["inputs"][0]["path"] == "../scans/a.nii.gz"
    assert len(found["a"]["inputs"][0]["sha256"]) == 64
    assert content["weights"][0]["bytes"] == weights.stat().st_size
    assert str(scans) not in (tmp_path / "out" / "a.json").read_text()


def test_a_missing_test_image_is_not_replaced_by_validation_images(tmp_path):
    save_nifti(tmp_path / "there.nii", SMALL, AFFINE)
    content = {
        "modality": {"0": "CT"},
        "test": ["./there.nii", "./missing.nii"],
        "validation": [{"image": "./val.nii", "label": "./val_label.nii"}],
    }
    write_json(tmp_path / "dataset.json", content)
    assert [case["case"] for case in find_volumes(tmp_path)] == ["there", "missing"]
    assert [case["case"] for case in find_volumes(tmp_path, section="validation")] == ["val"]
    with pytest.raises(InputError, match="training"):
        find_volumes(tmp_path, section="training")


def test_a_datalist_is_a_path_too(tmp_path):
    path = write_json(tmp_path / "list.json", [{"image": "a.nii", "modality": "CTA"}, {"image": "b.nii"}])
    assert [(case["case"], case["modality"]) for case in find_volumes(path)] == [("a", "CT"), ("b", "")]


@pytest.mark.parametrize("modality", ["CTA", "ct ", "CT"])
def test_modality_is_normalised_at_every_entrance(segmenter, weights, overlay, tmp_path, modality):
    path = save_nifti(tmp_path / "a.nii.gz", SMALL, AFFINE)
    assert find_volumes(path, modality=modality)[0]["modality"] == "CT"
    auto = _with_auto_window(segmenter)
    expected = segmenter.segment(path, "nodule").probabilities["nodule"]  # soft tissue
    assert np.array_equal(auto.segment(path, "nodule", modality=modality).probabilities["nodule"], expected)


def test_unknown_modality_is_refused(segmenter):
    for modality in (5, "tomography", "CTX"):
        with pytest.raises(InputError, match="modality"):
            segmenter.segment(SMALL, "nodule", modality=modality)
    with pytest.raises(InputError, match="needs the modality"):
        _with_auto_window(segmenter).segment(SMALL, "nodule", modality=None)


def _with_auto_window(segmenter):
    from boltzformer.data.windows import IntensityWindowd
    from monai.transforms import Compose

    steps = [*segmenter.preprocessing.transforms[:-1], IntensityWindowd("image", "auto")]
    return Segmenter(segmenter.network, Compose(steps), segmenter.inferer, segmenter.postprocessing)


def test_names_that_collide():
    prompts = [Prompt("a", "liver"), Prompt("b", "liver_probability")]
    SaveMasks("out", prompts)
    with pytest.raises(InputError, match=r"two results would be written to liver_probability\.nii\.gz"):
        SaveMasks("out", prompts, probability=True)
    with pytest.raises(InputError, match="256 prompts do not fit"):
        SaveMasks("out", [Prompt(f"p {i}", f"p{i}") for i in range(256)])


def test_two_arrays_saved_to_one_folder(segmenter, tmp_path):
    first, second = (segmenter.segment(array, "nodule") for array in (SMALL, SMALL[::-1]))
    first.save(tmp_path)
    with pytest.raises(InputError, match="name this one"):
        second.save(tmp_path)
    second.save(tmp_path, case="second")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "volume.nii.gz").dataobj), first.label_map)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "second.nii.gz").dataobj), second.label_map)


@pytest.mark.parametrize("source", ["torch", "nibabel", "strides"])
def test_the_api_takes_what_holds_a_volume(segmenter, source):
    made = {"torch": torch.from_numpy(SMALL), "nibabel": nib.Nifti1Image(SMALL, AFFINE), "strides": SMALL[::-1]}[source]
    affine = None if source == "nibabel" else AFFINE
    plain = np.ascontiguousarray(made) if source == "strides" else SMALL
    expected = segmenter.segment(plain, "nodule", affine=AFFINE)
    assert np.array_equal(segmenter.segment(made, "nodule", affine=affine).label_map, expected.label_map)


def test_bad_prompts_and_options(segmenter, weights, overlay, tmp_path):
    with pytest.raises(InputError, match="prompts: expected text"):
        segmenter.segment(SMALL, None)
    evil = f"$__import__('pathlib').Path({str(tmp_path / 'hacked')!r}).touch()"
    for option in ({"window": evil}, {"inferer": {"memory_gb": evil}}, {"window": "@seed"}):
        with pytest.raises(InputError, match="would be evaluated"):
            Segmenter.from_bundle(BUNDLE, weights, [overlay], "cpu", **option)
    assert not (tmp_path / "hacked").exists()


def test_an_output_folder_that_cannot_be_written_is_found_before_the_work(infer, scans, tmp_path, caplog):  # noqa: F811
    (tmp_path / "out").write_text("a file")
    with caplog.at_level("INFO"), raises_input_error("cannot write into"):
        infer(scans)
    assert "volume 1/3" not in caplog.text


def test_a_failure_is_one_line_with_the_innermost_cause():
    error = RuntimeError("applying transform <object at 0x7f>")
    error.__cause__ = KeyError("pixels")
    assert reason_of(error) == "KeyError: 'pixels'"
    assert reason_of(InputError("a.nii: cut")) == "a.nii: cut"
    assert reason_of(ValueError()) == "ValueError"


def test_a_prompt_list_of_the_bundle_is_found_from_another_folder(tmp_path, monkeypatch):
    from boltzformer.data.prompts import read_prompt_list

    monkeypatch.chdir(tmp_path)
    assert read_prompt_list("./configs/prompts.json") == read_prompt_list(BUNDLE / "configs" / "prompts.json")
    write_json(tmp_path / "configs" / "prompts.json", ["mine"])
    assert [prompt.text for prompt in read_prompt_list("./configs/prompts.json")] == ["mine"]
    with pytest.raises(InputError, match="no such prompt list"):
        read_prompt_list("./configs/absent.json")
    assert os.listdir(tmp_path) == ["configs"]
