"""MSD, AMOS22 and nnU-Net raw: each on a small archive of its layout, through the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from boltzformer.apps.prepare import app
from boltzformer.data.cases import load_cases
from boltzformer.data.prepare.msd import TASKS
from boltzformer.errors import InputError
from typer.testing import CliRunner

from tests.data.prepare.conftest import MSD_LABELS, gzip_damaged, labels, pack, save, tar_of, volume, write_task


def _prepare(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def _refused(*arguments: object, code: int = 2) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def _hidden(out: Path) -> list[str]:
    return [f.name for f in out.iterdir() if f.name.startswith(".") and not f.name.endswith(".lock")]


def test_a_task_becomes_a_dataset(lung_tar, tmp_path):
    said = _prepare("msd", lung_tar, tmp_path)
    assert "6 cases, up to" in said
    assert "are free" in said
    folder = tmp_path / "MSD_Lung"
    content = json.loads((folder / "dataset.json").read_text())
    assert content["modality"] == {"0": "CT"}
    assert content["body_part"] == "lung"
    assert content["labels"] == {"0": "background", "1": "neoplasm"}
    wordings = content["prompts"]["1"]
    assert wordings[0] == "neoplasm in lung CT"
    assert len(set(wordings)) == len(wordings) >= 10
    assert "lung cancer" in wordings
    cases = {section: load_cases(folder, section) for section in ("training", "validation", "test")}
    patients = {section: {case["patient"] for case in found} for section, found in cases.items()}
    assert {section: len(found) for section, found in cases.items()} == {"training": 4, "validation": 1, "test": 1}
    assert len(set.union(*patients.values())) == 6
    assert cases["training"][0]["prompts"][1] == wordings
    assert cases["training"][0]["annotated"] == [1]
    name = Path(cases["test"][0]["image"]).name
    original = lung_tar.parent / "Task06_Lung" / "imagesTr" / name
    assert Path(cases["test"][0]["image"]).read_bytes() == original.read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert sorted(f.name for f in folder.iterdir()) == [
        "SHA256SUMS",
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "manifest.json",
    ]
    assert len(list((folder / "imagesTr").iterdir())) == 6
    assert not _hidden(tmp_path)
    assert "already there" in _prepare("msd", lung_tar, tmp_path)
    assert "other settings" in _refused("msd", lung_tar, tmp_path, "--seed", 1)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.folder)
def test_every_task_is_known_by_its_own_label_table(task, tmp_path):
    root = write_task(tmp_path / "in", task.folder, cases=3)
    _prepare("msd", root, tmp_path / "out")
    content = json.loads((tmp_path / "out" / task.name / "dataset.json").read_text())
    assert len(content["labels"]) == len(MSD_LABELS[task.folder])
    assert set(content["prompts"]) == set(MSD_LABELS[task.folder]) - {"0"}
    # a prompt must tell the objects of a dataset apart
    firsts = [wordings[0] for wordings in content["prompts"].values()]
    assert len(set(firsts)) == len(firsts)
    assert all(text.endswith(" CT") for text in firsts)


def test_amos_is_told_apart_by_number(amos_folder, tmp_path):
    _prepare("amos", amos_folder, tmp_path)
    found = {
        modality: {
            section: {Path(case["image"]).name[:9] for case in load_cases(tmp_path / f"AMOS22_{modality}", section)}
            for section in ("training", "validation", "test")
        }
        for modality in ("CT", "MR")
    }
    assert found["CT"]["training"] | found["CT"]["validation"] == {"amos_0001", "amos_0004", "amos_0005", "amos_0499"}
    assert found["MR"]["training"] | found["MR"]["validation"] == {"amos_0500", "amos_0507", "amos_0590"}
    assert found["CT"]["test"] == {"amos_0008"}
    assert found["MR"]["test"] == {"amos_0508"}
    case = load_cases(tmp_path / "AMOS22_MR", "training")[0]
    assert case["modality"] == "MR"
    assert case["objects"][9] == "inferior vena cava"
    assert case["prompts"][2][0] == "right kidney in abdominal MRI"


def test_amos_from_a_zip_is_the_same(amos_folder, tmp_path):
    archive = tmp_path / "amos22.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(amos_folder.rglob("*")):
            packed.write(file, f"amos22/{file.relative_to(amos_folder)}")
        packed.writestr("__MACOSX/amos22/dataset.json", "{}")
    _prepare("amos", archive, tmp_path / "zip")
    _prepare("amos", amos_folder, tmp_path / "folder")
    sums = [(tmp_path / way / "AMOS22_CT" / "SHA256SUMS").read_text() for way in ("zip", "folder")]
    images = [[line for line in text.splitlines() if "Tr/" in line] for text in sums]
    assert images[0] == images[1]
    assert len(images[0]) == 10


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_nnunet_keeps_patients_together(nnunet_folder, tmp_path, ending):
    root = nnunet_folder(ending)
    out = tmp_path / "out"
    _prepare("nnunet", root, out, "--channel", 1, "--patient-pattern", r"mets_(\d+)", "--test-share", 0.25)
    folder = out / "Dataset042_BrainMets"
    cases = {section: load_cases(folder, section) for section in ("training", "validation", "test")}
    patients = [{case["patient"] for case in found} for found in cases.values()]
    assert [len(found) for found in patients] == [2, 1, 1]
    assert all(len(found) == 2 * len(who) for found, who in zip(cases.values(), patients, strict=True))
    case = cases["training"][0]
    assert (case["modality"], case["body_part"]) == ("MR", "brain")
    assert case["objects"] == {1: "metastasis", 2: "edema"}
    number = int(case["patient"])
    scan = Path(case["image"]).name.removesuffix(".nii.gz")[-1]
    image = nib.load(case["image"])
    assert np.array_equal(np.asarray(image.dataobj), volume(100 + 10 * number + ord(scan)))
    assert np.allclose(image.affine, np.diag([-1.5, -1.5, 3.0, 1.0]))


def test_nnunet_through_links_says_what_it_takes(nnunet_folder, tmp_path):
    """Folders on another disk, one of which leads back; a channel that is named after its normalisation."""
    root = nnunet_folder(channel_names={"0": "zscore", "1": "FLAIR"})
    shutil.move(root / "imagesTr", tmp_path / "elsewhere")
    (root / "imagesTr").symlink_to(tmp_path / "elsewhere")
    (root / "self").symlink_to(root)
    with pytest.raises(InputError, match="boltzformer prepare nnunet"):
        load_cases(root)
    said = _prepare("nnunet", root, tmp_path / "out", "--modality", "MRI")
    assert "channel 0 (zscore) of zscore, FLAIR is the image" in said
    assert {case["modality"] for case in load_cases(tmp_path / "out" / "Dataset042_BrainMets")} == {"MR"}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, (), "'whole' is a region"),
        ({"labels": {"background": 0, "metastasis": 1, "ignore": 2}}, (), "'ignore' label"),
        ({"labels": {"background": 0, "metastasis": 1}}, (), "label value 2 not listed"),
        ({"numTraining": 9}, (), "states 9 training cases and 8 are there"),
        ({"file_ending": ".png"}, (), "end in .png"),
        ({}, ("--channel", "2"), "no channel 2"),
        ({"channel_names": {"0": "noNorm", "1": "FLAIR"}}, (), "called 'noNorm', which says no modality"),
        ({}, ("--patient-pattern", "x(y)"), "does not match"),
        ({}, ("--leave-out", "nobody"), "no case named 'nobody'"),
    ],
    ids=["regions", "ignore", "label table", "too few", "ending", "channel", "modality", "patients", "leave out"],
)
def test_nnunet_mistakes(nnunet_folder, tmp_path, changes, options, message):
    out = tmp_path / "out"
    code = 1 if "label value" in message else 2
    assert message in _refused("nnunet", nnunet_folder(**changes), out, *options, code=code)
    assert not (out / "Dataset042_BrainMets").exists()


def test_half_an_archive_is_named(lung_tar, tmp_path):
    data = lung_tar.read_bytes()
    half = tmp_path / "Task06_Lung.tar"
    half.write_bytes(data[: len(data) // 2])
    said = _refused("msd", half, tmp_path / "out")
    assert str(half) in said
    assert "half downloaded" in said or "incomplete" in said
    (tmp_path / "half.zip").write_bytes(b"PK\3\4" + bytes(3000))
    assert "half downloaded" in _refused("amos", tmp_path / "half.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_cut_between_two_files_is_incomplete(lung_tar, tmp_path):
    root = lung_tar.parent / "Task06_Lung"
    files = [
        root / "dataset.json",
        *sorted((root / "imagesTr").glob("lung*")),
        *sorted((root / "labelsTr").iterdir())[:4],
    ]
    archive = tar_of(
        {f"Task06_Lung/{f.relative_to(root)}": f.read_bytes() for f in files}, tmp_path / "Task06_Lung.tar"
    )
    said = _refused("msd", archive, tmp_path / "out")
    assert "2 of 12 files that Task06_Lung/dataset.json lists are missing" in said


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("Task03_Liver", {}, "is 'Liver', none of Task06_Lung"),
        ("Task06_Lung", {"labels": {"0": "background", "1": "nodule"}}, "another version of the task"),
        ("Task06_Lung", {"numTraining": 63}, "states 63 training cases and lists 3"),
        ("Task06_Lung", {"training": [1], "numTraining": 1}, "no pair of image and label"),
    ],
    ids=["other task", "label table", "short list", "list"],
)
def test_wrong_tasks_are_refused(tmp_path, task, changes, message):
    root = write_task(tmp_path / "in", task, cases=3, **changes)
    assert message in _refused("msd", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_tasks_and_odd_files_are_refused(tmp_path):
    write_task(tmp_path / "in", "Task06_Lung", cases=1)
    write_task(tmp_path / "in", "Task10_Colon", cases=1)
    assert "several datasets" in _refused("msd", tmp_path / "in", tmp_path / "out")
    compressed = tmp_path / "x.tar.gz"
    compressed.write_bytes(b"\x1f\x8b\x08" + bytes(600))
    assert "unpack it" in _refused("msd", compressed, tmp_path / "out")
    (tmp_path / "empty.tar").touch()
    assert "is empty" in _refused("msd", tmp_path / "empty.tar", tmp_path / "out")
    assert "no such archive" in _refused("msd", tmp_path / "nothing", tmp_path / "out")


def test_a_damaged_case_is_named_and_the_finished_ones_are_kept(tmp_path):
    root = write_task(tmp_path / "in")
    original = (root / "imagesTr" / "lung_002.nii.gz").read_bytes()
    gzip_damaged(root / "imagesTr" / "lung_002.nii.gz")
    save(root / "labelsTr" / "lung_004.nii.gz", labels([1], (12, 10, 6)))
    out = tmp_path / "out"
    said = _refused("msd", root, out, code=1)
    assert "lung_002: " in said
    assert "lung_004: " in said
    assert "2 of 6 cases failed" in said
    assert _hidden(out) == [".MSD_Lung.draft"]
    assert not (out / "MSD_Lung").exists()
    account = json.loads((out / "manifest.json").read_text())
    assert (account["asked"], account["done"], account["failed"], account["skipped"]) == (6, 0, 2, 4)
    reasons = {entry["name"]: entry["reason"] for entry in account["entries"] if entry["status"] == "failed"}
    assert set(reasons) == {"MSD_Lung/lung_002", "MSD_Lung/lung_004"}
    assert all(reason.startswith(name.split("/")[1]) for name, reason in reasons.items())

    # mended: only the two are read again
    (root / "imagesTr" / "lung_002.nii.gz").write_bytes(original)
    save(root / "labelsTr" / "lung_004.nii.gz", labels([1]))
    begun = {file: file.stat().st_mtime_ns for file in (out / ".MSD_Lung.draft" / "imagesTr").iterdir()}
    said = _prepare("msd", root, out)
    assert "4 cases are there from an earlier start" in said
    kept = {
        file.name: stamp for file, stamp in begun.items() if file.name not in {"lung_002.nii.gz", "lung_004.nii.gz"}
    }
    assert {name: (out / "MSD_Lung/imagesTr" / name).stat().st_mtime_ns for name in kept} == kept
    assert json.loads((out / "manifest.1.json").read_text()) == account
    account = json.loads((out / "manifest.json").read_text())
    assert (account["command"], account["done"], account["failed"]) == ("preparation", 6, 0)
    sums = (out / "MSD_Lung" / "SHA256SUMS").read_text()
    assert all(file["sha256"] in sums for entry in account["entries"] for file in entry["outputs"])
    assert sum(len(entry["outputs"]) for entry in account["entries"]) == 12
    fresh = tmp_path / "fresh"
    _prepare("msd", root, fresh)
    assert (fresh / "MSD_Lung" / "SHA256SUMS").read_text() == (out / "MSD_Lung" / "SHA256SUMS").read_text()


def test_a_damaged_case_can_be_left_out_by_name(tmp_path):
    root = write_task(tmp_path / "in")
    gzip_damaged(root / "labelsTr" / "lung_003.nii.gz")
    _refused("msd", root, tmp_path / "out", code=1)
    _prepare("msd", root, tmp_path / "out", "--leave-out", "lung_003")
    folder = tmp_path / "out" / "MSD_Lung"
    assert "left out by the user: lung_003" in json.loads((folder / "dataset.json").read_text())["notes"]
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == 5
    account = json.loads((tmp_path / "out" / "manifest.json").read_text())
    left_out = [entry for entry in account["entries"] if entry["status"] == "skipped"]
    assert [(entry["name"], entry["reason"]) for entry in left_out] == [("MSD_Lung/lung_003", "left out by the user")]


def test_too_little_disk_is_said_before(tmp_path, monkeypatch):
    root = write_task(tmp_path / "in", cases=3)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("boltzformer.data.prepare.build.shutil.disk_usage", lambda _: usage)
    said = _refused("msd", root, tmp_path / "out")
    assert "of disk" in said
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_folder_with_something_else_is_not_touched(lung_tar, tmp_path):
    (tmp_path / "MSD_Lung").mkdir()
    (tmp_path / "MSD_Lung" / "thesis.txt").write_text("mine")
    assert "was not prepared by this command" in _refused("msd", lung_tar, tmp_path)
    assert [f.name for f in (tmp_path / "MSD_Lung").iterdir()] == ["thesis.txt"]


def test_names_that_lead_out_of_an_archive_are_not_followed(tmp_path):
    content = json.dumps({"name": "Lung", "labels": MSD_LABELS["Task06_Lung"], "numTraining": 1})
    pair = {"image": "../../evil.nii.gz", "label": "../../evil.nii.gz"}
    files = {"Task06_Lung/dataset.json": json.dumps({**json.loads(content), "training": [pair]}).encode()}
    archive = tar_of({**files, "../../evil.nii.gz": b"x"}, tmp_path / "Task06_Lung.tar")
    assert "missing" in _refused("msd", archive, tmp_path / "out")


def test_pack_gives_what_the_folder_gives(lung_tar, tmp_path):
    _prepare("msd", lung_tar, tmp_path / "tar")
    _prepare("msd", pack(lung_tar.parent / "Task06_Lung").parent / "Task06_Lung", tmp_path / "folder", "--workers", 1)
    first, second = ((tmp_path / way / "MSD_Lung" / "dataset.json").read_text() for way in ("tar", "folder"))
    assert first == second
