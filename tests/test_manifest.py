"""The account of a run."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from boltzformer.manifest import DONE, FAILED, SKIPPED, Entry, Manifest


def test_every_path_is_accounted_for(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    scan, mask, weights = tmp_path / "in" / "a.nii", tmp_path / "out" / "a.nii.gz", tmp_path / "model.pt"
    for path, content in ((scan, b"scan"), (mask, b"mask"), (weights, b"weights")):
        path.write_bytes(content)
    manifest = Manifest("inference", tmp_path / "out", weights, {"window": [0, 1], "file": str(scan)})
    assert manifest.exit_code == 0
    manifest.add(Entry("a", str(scan), DONE, inputs=(scan,), outputs=(mask,), seconds=1.5))
    manifest.add(Entry("b", str(tmp_path / "in" / "b.nii"), FAILED, "no such file"))
    manifest.add(Entry("c", str(tmp_path / "in" / "c.txt"), SKIPPED, "is no volume"))
    assert manifest.exit_code == 1
    content = json.loads(manifest.write().read_text())
    assert (content["asked"], content["done"], content["failed"], content["skipped"]) == (3, 1, 1, 1)
    first = content["entries"][0]
    assert first["path"] == "../in/a.nii"
    assert first["inputs"] == [{"path": "../in/a.nii", "bytes": 4, "sha256": hashlib.sha256(b"scan").hexdigest()}]
    assert first["outputs"] == [{"path": "a.nii.gz", "bytes": 4, "sha256": hashlib.sha256(b"mask").hexdigest()}]
    assert content["weights"][0]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert content["entries"][1]["reason"] == "no such file"
    assert content["settings"] == {"window": [0, 1], "file": "../in/a.nii"}
    assert {"python", "torch", "bundle"} <= set(content["versions"])
    assert str(tmp_path) not in json.dumps(content)


def test_an_earlier_account_is_kept(tmp_path):
    for command in ("first", "second", "third"):
        Manifest(command, tmp_path).write()
    kept = {path.name: json.loads(path.read_text())["command"] for path in tmp_path.iterdir()}
    assert kept == {"manifest.1.json": "first", "manifest.2.json": "second", "manifest.json": "third"}


def test_a_status_of_another_name():
    with pytest.raises(ValueError, match="status"):
        Entry("a", "a", "lost")


def test_a_file_whose_name_is_no_utf8_is_accounted_for(tmp_path):
    name = os.fsdecode(b"M\xfcller.nii.gz")
    manifest = Manifest("segmentation", tmp_path)
    manifest.add(Entry(name, name, FAILED, f"{name}: its name is no UTF-8 text"))
    assert json.loads(manifest.write().read_text(encoding="utf-8"))["entries"][0]["name"] == name
