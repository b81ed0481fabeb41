"""A few hundred damaged inputs break nothing; and what would be broken is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.fuzz.sandbox import Sandbox, check_grid, check_record
from tests.fuzz.tools import AFFINE, SHAPE, Finished

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_damaged_inputs_break_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "200", "--seed", "0"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "bundle"), str(ROOT)]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "200 inputs" in done.stdout
    assert "0 violations" in done.stdout


def test_a_change_outside_the_output_folder_is_noticed(tmp_path):
    box = Sandbox(tmp_path / "box")
    (box.given / "a").write_bytes(b"1")
    before = box.state()
    (box.out / "x").parent.mkdir()
    (box.out / "x").write_bytes(b"may be")
    box.compare(before)
    assert box.problems == []
    (box.given / "a").write_bytes(b"2")
    (box.cwd / "b").touch()
    box.compare(before)
    assert [problem.rsplit("/", 1)[-1] for problem in box.problems] == ["b is new", "a changed"]


@pytest.mark.parametrize(("moved", "expected"), [(0.0, 0), (2.0, 1)])
def test_a_mask_that_lies_elsewhere_is_noticed(tmp_path, moved, expected):
    box = Sandbox(tmp_path / "box")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), box.given / "a.nii")
    shift = AFFINE.copy()
    shift[0, 3] += moved
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), shift), box.root / "mask.nii")
    check_grid(box, box.root / "mask.nii", box.given / "a.nii")
    assert len(box.problems) == expected


def test_half_a_result_and_a_draft_are_noticed(tmp_path):
    box = Sandbox(tmp_path / "box")
    box.out.mkdir()
    (box.out / ".x.draft").touch()
    (box.out / "record.json").write_text(json.dumps({"cases": {"a": {"files": {"a.json": "0" * 64}}}}))
    check_record(box, 0, box.given / "a.nii")
    assert box.problems == ["a.json is not what the record says", "left in the output folder: .x.draft"]


def test_a_traceback_and_an_odd_code_are_noticed():
    assert Finished(0, "").judge().problems == []
    assert Finished(1, "Traceback (most recent call last):").judge().problems == ["a traceback reached the user"]
    assert Finished(3, "").judge().problems == ["exit code 3", "code 3 without a word"]
