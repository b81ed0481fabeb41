"""`boltzformer segment`: the config's masks bit for bit, batches that survive and go on, nothing evaluated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from boltzformer.apps import segment as command
from boltzformer.apps.batch import Request, run_batch
from boltzformer.apps.findings import Finding, measure
from boltzformer.apps.record import NAME as RECORD
from boltzformer.apps.record import BatchRecord
from boltzformer.data.prompts import Prompt, make_prompts
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.manifest import sha256_of
from boltzformer.volumes.segmented import Algorithm
from boltzformer.volumes.write import Grid

from tests.support import body, noted_spacing, run_inference, save_nifti, write_json
from tests.volumes.small_series import straight, write_small_series

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
PROMPTS = ["lung nodule in chest CT", "liver"]


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def scans(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", body((24, 20, 4), seed), AFFINE)
    return tmp_path / "scans"


def test_masks_are_those_of_the_bundles_config_bit_for_bit(segment, scans, weights, overlay, tmp_path):
    prompt_list = write_json(tmp_path / "prompts.json", PROMPTS)
    run_inference(overlay, weights, scans, tmp_path / "config", prompt_list=str(prompt_list))
    done = segment(scans, *PROMPTS, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = [
        "a.nii.gz",
        "b.nii.gz",
        *(f"a/{prompt.name}.nii.gz" for prompt in make_prompts([(p, None) for p in PROMPTS])),
    ]
    for name in names:
        ours, theirs = load(tmp_path / "out" / name), load(tmp_path / "config" / name)
        assert np.array_equal(ours, theirs), name
    assert any(load(tmp_path / "out" / name).any() for name in names)
    for name in ("a.png", "b.png"):  # the contact sheets too, which nobody asked for
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "config" / name).read_bytes()


def test_a_line_for_each_case_and_prompt_tells_what_was_found(segment, scans, tmp_path):
    done = segment(scans / "a.nii.gz", *PROMPTS, "-o", tmp_path / "out", "-f", "nifti", "-f", "json")
    lines = [line for line in done.stdout.splitlines() if line.startswith("a: ")]
    assert len(lines) == 2
    assert all(prompt in line for prompt, line in zip(PROMPTS, lines, strict=True))
    findings = json.loads((tmp_path / "out" / "a.summary.json").read_text())["findings"]
    mask = load(tmp_path / "out" / "a" / "liver.nii.gz")
    assert findings[1]["voxels"] == mask.sum()
    assert findings[1]["millilitres"] == pytest.approx(mask.sum() * 3 / 1000, rel=1e-5)


def test_precision_is_part_of_the_request(segment, scans, tmp_path):
    one = (scans / "a.nii.gz", PROMPTS[0], "-o", tmp_path / "out")
    assert "finished earlier" not in segment(*one).output
    assert "finished earlier" in segment(*one).output
    assert "finished earlier" not in segment(*one, "--precision", "plain").output
    assert "finished earlier" in segment(*one, "--precision", "plain").output


def test_json_is_one_object_a_case(segment, scans, tmp_path):
    done = segment(scans, "liver", "-o", tmp_path / "out", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(case["case"], case["status"]) for case in told] == [("a", "done"), ("b", "done")]
    assert all((tmp_path / "out" / name).is_file() for case in told for name in case["files"])
    assert set(told[0]["findings"][0]) >= {"prompt", "found", "probability", "voxels", "millilitres", "parts"}


def test_a_bad_case_stops_no_other_and_the_next_start_does_only_what_is_missing(segment, scans, tmp_path):
    whole = (scans / "b.nii.gz").read_bytes()
    (scans / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    save_nifti(scans / "c.nii.gz", body((24, 20, 4), 2), AFFINE)
    arguments = (scans, "liver", "-o", tmp_path / "out", "--json")

    def told():
        done = segment(*arguments)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return done.exit_code, {case["case"]: case["status"] for case in lines}, done

    code, states, done = told()
    assert (code, states) == (1, {"a": "done", "b": "failed", "c": "done"})
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [account[key] for key in ("asked", "done", "failed", "skipped")] == [3, 2, 1, 0]
    assert {entry["name"]: entry["status"] for entry in account["entries"]} == states
    first, bad, _ = account["entries"]
    assert first["inputs"][0]["sha256"] == sha256_of(scans / "a.nii.gz")
    assert {(entry["path"], entry["sha256"]) for entry in first["outputs"]} == {
        (name, sha256_of(tmp_path / "out" / name)) for name in ("a/liver.nii.gz", "a.nii.gz", "a.png")
    }
    assert "b.nii.gz" in bad["reason"]
    assert len(account["weights"][0]["sha256"]) == 64
    assert "b.nii.gz" in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out" / "b.nii.gz").exists()
    (scans / "b.nii.gz").write_bytes(whole)
    os.remove(tmp_path / "out" / "c" / "liver.nii.gz")
    code, states, _ = told()
    assert (code, states) == (0, {"a": "skipped", "b": "done", "c": "done"})
    assert told()[1] == dict.fromkeys("abc", "skipped")
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (account["asked"], account["skipped"]) == (3, 3)
    assert (tmp_path / "out" / "manifest.1.json").is_file()  # of the first start
    # another question, or another image under the same name, is no finished case
    assert segment(scans / "a.nii.gz", "spleen", "-o", tmp_path / "out", "--json").stdout.count('"done"') == 1
    save_nifti(scans / "c.nii.gz", body((24, 20, 4), 5), AFFINE)
    assert told()[1] == {"a": "done", "b": "skipped", "c": "done"}


def test_ctrl_c_leaves_an_account_too(segment, scans, tmp_path, monkeypatch):
    show = command._print_lines

    def interrupted(result):
        show(result)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "_print_lines", interrupted)
        assert segment(scans, "liver", "-o", tmp_path / "out").exit_code == 130
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    first, second = account["entries"]
    assert (first["status"], second["status"]) == ("done", "skipped")
    assert first["outputs"]
    assert "the run was stopped before" in second["reason"]
    assert segment(scans, "liver", "-o", tmp_path / "out").stdout.count("finished earlier") == 1


def test_a_prompt_is_never_evaluated(segment, scans, tmp_path):
    trap = tmp_path / "executed"
    prompt = f"$open('{trap}', 'w').close() or 'liver'"
    done = segment(scans / "a.nii.gz", prompt, "@network", "%train#x liver", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert [finding["prompt"] for finding in json.loads(done.stdout)["findings"]] == [
        prompt,
        "@network",
        "%train#x liver",
    ]
    assert not trap.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.nii.gz", "liver"], "no such file"),
        (["{scan}"], "no prompt was given"),
        (["{scan}", "liver", "liver"], "twice"),
        (["{scan}", "liver", "-f", "bmp"], "choose among"),
        (["{scan}", "liver", "--device", "quantum"], "--device"),
        (["{scan}", "liver", "--window", "$print(1)"], "window"),
        (["{scan}", "liver", "--window", "1,x"], "two numbers"),
        (["{scan}", "liver", "--uneven-spacing", "$1"], "refuse or warn"),
        (["{scan}", "liver", "--modality", "$1"], "modality"),
        (["{scan}", "liver", "--precision", "half"], "precision is 'half'"),
        (["{scan}", "liver", "--weights", "none.pt"], "none.pt"),
        (["{scan}", "liver", "--overlay", "none.json"], "none.json: no such overlay"),
    ],
)
def test_what_cannot_start_is_one_line_and_code_2(shell, scans, tmp_path, weights, arguments, said):
    given = [argument.format(scan=scans / "a.nii.gz") for argument in arguments]
    if "--weights" not in given:
        given += ["--weights", str(weights)]
    done = shell("segment", *given, "-o", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output


def test_weights_of_another_network_start_nothing(shell, scans, tmp_path, overlay):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pt")
    weights = ["--weights", tmp_path / "other.pt", "--overlay", overlay, "--window", "soft_tissue"]
    done = shell("segment", scans, "liver", *weights, "--device", "cpu", "-o", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "other.pt" in done.output


def test_no_input_and_no_strangers_file_is_written_over(segment, scans, tmp_path):
    before = (scans / "a.nii.gz").read_bytes()
    done = segment(scans / "a.nii.gz", "liver", "-o", scans)
    assert done.exit_code == 2
    assert "holds the input" in done.output
    assert (scans / "a.nii.gz").read_bytes() == before
    assert sorted(path.name for path in scans.iterdir()) == ["a.nii.gz", "b.nii.gz"]  # nothing lies among the inputs
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.seg.nrrd").write_text("drawn by hand")
    done = segment(scans / "a.nii.gz", "liver", "-o", tmp_path / "out", "-f", "seg.nrrd")
    assert done.exit_code == 1
    assert (tmp_path / "out" / "a.seg.nrrd").read_text() == "drawn by hand"
    (tmp_path / "out" / RECORD).write_text("{}")
    assert segment(scans / "a.nii.gz", "liver", "-o", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry["findings"][0].update(surprise=1),
        lambda entry: entry["findings"][0].update(millilitres="many"),
        lambda entry: entry["files"].update({"a.nii.gz": 5}),
        lambda entry: entry.update(earlier=[["x"]]),
        lambda entry: entry.pop("files"),
        lambda entry: entry.update(seconds=None),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, damage):
    finding = {"label": 1, "name": "a", "prompt": "a", "found": False, "probability": None, "voxels": 0}
    entry = {"request": "0", "files": {"a.nii.gz": "0"}, "findings": [finding | {"millilitres": 0.0, "parts": 0}]}
    content = {"boltzformer_record": 1, "cases": {"a": entry | {"seconds": 1.0}}}
    path = write_json(tmp_path / RECORD, content)
    assert BatchRecord(tmp_path).entries == content["cases"]
    damage(content["cases"]["a"])
    write_json(path, content)
    with pytest.raises(InputError, match=r"record\.json: is no record of this program, or damaged"):
        BatchRecord(tmp_path)


def test_a_nested_dicom_study_becomes_seg_and_rtstruct(segment, tmp_path):
    files = write_small_series(tmp_path / "in" / "patient" / "study" / "ct", straight(4))
    (tmp_path / "in" / "patient" / "notes.txt").write_text("no image")
    done = segment(
        tmp_path / "in", "liver", "-o", tmp_path / "out", "-f", "dicom-seg", "-f", "rtstruct", "-f", "nifti", "--json"
    )
    assert done.exit_code == 0, done.output
    (case,) = [json.loads(line) for line in done.stdout.splitlines()]
    seg = hd.seg.segread(tmp_path / "out" / f"{case['case']}.seg.dcm")
    assert seg.SegmentSequence[0].SegmentLabel == "liver"
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    mask = load(tmp_path / "out" / case["case"] / "liver.nii.gz")
    assert np.array_equal(pixels[..., 0].transpose(2, 1, 0), mask)
    assert pydicom.dcmread(tmp_path / "out" / f"{case['case']}.rtstruct.dcm").Modality == "RTSTRUCT"


def test_a_case_that_a_format_does_not_fit_fails_before_the_network_runs(segment, scans, tmp_path, monkeypatch):
    for file in write_small_series(tmp_path / "ct", straight(4)):
        header = pydicom.dcmread(file)
        del header.StudyInstanceUID
        header.save_as(file)
    monkeypatch.setattr(Segmenter, "segment", lambda *_, **__: pytest.fail("the network was run for nothing"))
    for source, reason in ((tmp_path / "ct", "StudyInstanceUID"), (scans / "a.nii.gz", "is no DICOM series")):
        for name in ("dicom-seg", "rtstruct"):
            done = segment(source, "liver", "-o", tmp_path / "out", "-f", "nifti", "-f", name)
            assert done.exit_code == 1
            assert reason in done.output


def test_nrrd_mha_and_a_json_list_are_read(segment, tmp_path):
    array = body((24, 20, 4))
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.0, 1.0, 3.0))
    (tmp_path / "in").mkdir()
    for name in ("x.nrrd", "y.mha"):
        sitk.WriteImage(image, str(tmp_path / "in" / name))
    listed = write_json(tmp_path / "list.json", {"test": [str(tmp_path / "in" / name) for name in ("x.nrrd", "y.mha")]})
    for source in (tmp_path / "in", listed):
        done = segment(source, "liver", "-o", tmp_path / f"out_{source.name}", "--json")
        assert done.exit_code == 0, done.output
        assert sorted(json.loads(line)["case"] for line in done.stdout.splitlines()) == ["x", "y"]
    assert np.array_equal(load(tmp_path / "out_in" / "x.nii.gz"), load(tmp_path / "out_in" / "y.nii.gz"))


def test_a_list_says_whose_voxel_size_means_nothing(segment, scans, tmp_path, monkeypatch):
    told = noted_spacing(monkeypatch)
    first, second = str(scans / "a.nii.gz"), str(scans / "b.nii.gz")
    for listed in ([{"image": first, "spacing": "unknown"}, second], [first, second]):
        done = segment(write_json(tmp_path / "list.json", {"test": listed}), "liver", "-o", tmp_path / "out")
        assert done.exit_code == 0, done.output
    assert told == [False, True, True], "the first is done again, for what is said of it has changed"


def test_a_kill_between_record_and_files_leaves_a_case_to_do_again(segment, scans, tmp_path, segmenter, monkeypatch):
    out = tmp_path / "out"
    request = Request((Prompt("liver", "liver"),), ("nifti",), Algorithm("BoltzFormer", "1"))
    cases = [{"image": str(scans / "a.nii.gz"), "case": "a", "modality": "CT"}]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("boltzformer.apps.record.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run_batch(cases, request, lambda: segmenter, out)
    for _ in range(2):
        results = run_batch(cases, request, lambda: segmenter, out)
    assert [result.status for result in results] == ["skipped"]
    assert not list(out.glob(".boltzformer-*"))


def test_measures_of_known_masks():
    masks = np.zeros((3, 20, 20, 10), np.uint8)
    masks[0, 2:4, 2:4, 2:4] = 1
    masks[0, 10:12, 10:12, 5:6] = 1
    masks[1, 5, 5, 5] = 1
    grid = Grid(masks.shape[1:], np.diag([-2.0, 2.0, 5.0, 1.0]), "volume")
    existence = np.array([[0.1, 0.93], [0.2, 0.4], [0.0, 0.05]])
    found = measure(masks, [Prompt(name, name) for name in "abc"], grid, existence)
    assert [(f.found, f.voxels, f.parts, f.probability) for f in found] == [
        (True, 12, 2, 0.93),
        (True, 1, 1, 0.4),
        (False, 0, 0, 0.05),
    ]
    assert found[0].millilitres == pytest.approx(12 * 20 / 1000)
    assert command._told(found[0]) == "found (probability 0.93), 0.24 ml, 2 parts"
    assert command._told(found[2]) == "not found (probability 0.05)"
    (unknown, *_) = measure(masks, [Prompt(name, name) for name in "abc"], replace(grid, spacing_known=False))
    assert unknown.millilitres is None
    assert command._told(unknown) == "found, 12 voxels, 2 parts"
    assert Finding.from_dict(unknown.as_dict()) == unknown
