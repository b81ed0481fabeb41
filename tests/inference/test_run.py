"""inference.json as a user runs it: many volumes, and those that cannot be used."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from boltzformer.error_report import find_input_error
from boltzformer.volumes.write import Grid

from tests.support import BUNDLE, body, raises_input_error, run_inference, save_nifti, write_json

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


@pytest.fixture
def infer(weights, overlay, tmp_path):
    """Runs the config in this process; gives the folder with the results."""

    def run(dataset_dir, **settings):
        settings.setdefault(
            "prompt_list", str(write_json(tmp_path / "prompts.json", {"one": "nodule", "two": "liver"}))
        )
        run_inference(overlay, weights, dataset_dir, tmp_path / "out", **settings)
        return tmp_path / "out"

    return run


@pytest.fixture
def scans(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", body((24, 20, 4), seed), AFFINE)
    return tmp_path / "scans"


def test_folder_gives_masks_maps_and_notes(infer, scans, segmenter):
    out = infer(scans, probability=True, seed=0)
    assert sorted(p.name for p in out.iterdir() if p.is_file()) == [
        *(f"{n}.{s}" for n in "abc" for s in ("json", "nii.gz", "png")),
        "manifest.json",
    ]
    account = json.loads((out / "manifest.json").read_text())["entries"]
    assert all(f"{entry['name']}.png" in [file["path"] for file in entry["outputs"]] for entry in account)
    notes = json.loads((out / "b.json").read_text())
    assert [(entry["label"], entry["name"], entry["prompt"]) for entry in notes["labels"]] == [
        (1, "one", "nodule"),
        (2, "two", "liver"),
    ]
    assert notes["seed"] == 0
    assert notes["computation"] == "float32, in groups of 8 slices"
    assert notes["blank_slices_are_empty"] is True
    result = segmenter.segment(scans / "b.nii.gz", ["nodule", "liver"])  # the API gives the same
    label_map = np.asarray(nib.load(out / "b.nii.gz").dataobj)
    assert np.array_equal(label_map, result.label_map)
    for entry, mask in zip(notes["labels"], result.masks.values(), strict=True):
        saved = np.asarray(nib.load(out / "b" / f"{entry['name']}.nii.gz").dataobj)
        assert np.array_equal(saved, mask)
        assert entry["voxels"] == saved.sum()
        assert entry["millilitres"] == pytest.approx(saved.sum() * 3 / 1000)
        probability = np.asarray(nib.load(out / "b" / f"{entry['name']}_probability.nii.gz").dataobj)
        assert np.array_equal(probability >= 0.5, saved == 1)
        assert np.all(saved[label_map == entry["label"]] == 1)


def test_where_the_voxel_size_means_nothing_no_millilitres_are_told(infer, scans, segmenter):
    item = {"image": str(scans / "a.nii.gz"), "spacing": "unknown"}
    listed = write_json(scans.parent / "list.json", {"labels": {"1": "one"}, "modality": "CT", "validation": [item]})
    notes = json.loads((infer(listed) / "a.json").read_text())["labels"]
    assert [entry["millilitres"] for entry in notes] == [None, None]
    assert max(entry["voxels"] for entry in notes) > 0
    result = segmenter.segment(body((24, 20, 4)), "nodule", modality="CT")  # an array without affine
    result.save(scans.parent / "saved")
    (entry,) = json.loads((scans.parent / "saved" / "volume.json").read_text())["labels"]
    assert entry["millilitres"] is None


def test_pictures_can_be_left_out_and_replace_no_one_elses(infer, scans, tmp_path):
    foreign = tmp_path / "out" / "b.png"
    foreign.parent.mkdir()
    foreign.write_bytes(b"\x89PNG a holiday")
    with raises_input_error(r"b\.png: is there already and was not written by this program"):
        infer(scans)
    assert sorted(path.name for path in foreign.parent.iterdir()) == ["b.png"]  # known before the first volume
    infer(scans, overlay_png=False)
    assert [path.name for path in foreign.parent.glob("*.png")] == ["b.png"]
    assert foreign.read_bytes() == b"\x89PNG a holiday"


def test_one_bad_volume_does_not_stop_the_others(infer, scans, tmp_path, caplog):
    array = body((24, 20, 4))
    save_nifti(scans / "b1_four.nii.gz", np.stack([array, array], -1), AFFINE)
    with_nan = array.astype(np.float32)
    with_nan[3, 3, 3] = np.nan
    save_nifti(scans / "b2_nan.nii.gz", with_nan, AFFINE)
    whole = (scans / "a.nii.gz").read_bytes()
    (scans / "b3_cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "b4_text.nii.gz").write_text("no volume")
    with caplog.at_level("INFO"), pytest.raises(RuntimeError) as caught:
        infer(scans)
    message = str(find_input_error(caught.value))
    assert message.startswith("4 of 7 volumes failed:")
    for name, reason in (
        ("b1_four", "expected 3 dimensions"),
        ("b2_nan", "finite"),
        ("b3_cut", "trunc"),
        ("b4_text", ""),
    ):
        line = next(line for line in message.splitlines() if f"  {name}: " in line)
        assert reason in line
        assert str(scans / f"{name}.nii.gz") in line
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert "3 of 7 volumes segmented" in caplog.text


def test_ctrl_c_leaves_an_account_and_no_half_file(infer, scans, tmp_path, monkeypatch):
    write = Grid.write

    def stopped(grid, array, path, *rest):
        if path.parent.name == "b" and path.stem.startswith("two"):
            raise KeyboardInterrupt
        return write(grid, array, path, *rest)

    monkeypatch.setattr(Grid, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        infer(scans)
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [account[key] for key in ("asked", "done", "failed", "skipped")] == [3, 1, 1, 1]
    a, b, c = account["entries"]
    assert (a["name"], a["status"]) == ("a", "done")
    assert (b["name"], b["status"], [file["path"] for file in b["outputs"]]) == ("b", "failed", ["b/one.nii.gz"])
    assert "in the middle" in b["reason"]
    assert (c["name"], c["status"], c["outputs"]) == ("c", "skipped", [])
    listed = {file["path"] for entry in (a, b) for file in entry["outputs"]} | {"manifest.json"}
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} == listed


def test_full_disk_is_one_failure_a_volume_and_leaves_no_half_file(infer, scans, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with raises_input_error(r"3 of 3 volumes failed:\n  a: cannot write .*free some space"):
            infer(scans, prompt_list=str(_prompts_before_the_limit(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def _prompts_before_the_limit(tmp_path):
    return write_json(tmp_path / "short.json", ["nodule"])


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "holds no prompt"), ([""], "prompt is empty"), ([7], "must be text"), ("{", "cannot be read as JSON")],
)
def test_bad_prompt_lists(infer, scans, tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_text(content) if isinstance(content, str) else write_json(file, content)
    with raises_input_error(message):
        infer(scans, prompt_list=str(file))


def test_prompts_are_data_and_never_evaluated(infer, scans, tmp_path):
    evil = "$__import__('pathlib').Path('hacked').touch() @seed %run # nodule"
    out = infer(
        scans / "a.nii.gz", prompt_list=str(write_json(tmp_path / "evil.json", [{"prompt": evil, "name": "x"}]))
    )
    assert json.loads((out / "a.json").read_text())["labels"][0]["prompt"] == evil


def test_window_needs_a_modality(infer, scans):
    with raises_input_error("set `modality` to CT or MR"):
        infer(scans / "a.nii.gz", window="auto")


def test_missing_modality_is_given(infer, scans):
    out = infer(scans / "a.nii.gz", window="auto", modality="CT")
    assert (out / "a.nii.gz").is_file()


def _command_line(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    return subprocess.run([*command, *arguments], cwd=BUNDLE, env=environment, capture_output=True, text=True)


def test_the_literal_command(scans, weights, overlay, tmp_path):
    done = _command_line(
        f"['configs/inference.json','{overlay}']",
        *("--dataset_dir", str(scans / "a.nii.gz"), "--checkpoint", str(weights), "--window", "lung"),
        *("--output_dir", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 volumes segmented" in done.stdout
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_mistake_on_the_command_line_is_one_line(scans, overlay, tmp_path):
    done = _command_line(
        f"['configs/inference.json','{overlay}']",
        *("--dataset_dir", str(scans), "--checkpoint", str(tmp_path / "absent.pt")),
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: no checkpoint at {tmp_path / 'absent.pt'}")
    assert "Traceback" not in done.stderr
