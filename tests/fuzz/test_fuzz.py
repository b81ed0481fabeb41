"""Two thousand damaged inputs break nothing (`make fuzz` tries 20 000); and what would be broken is noticed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.fuzz import kinds
from tests.fuzz.files import dataset
from tests.fuzz.sandbox import Sandbox, check_grid, check_record
from tests.fuzz.tools import AFFINE, SHAPE, Finished, Tools, nifti, series

ROOT = Path(__file__).resolve().parents[2]


def test_damaged_inputs_break_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--count", "600", "--seed", "0"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "bundle"), str(ROOT)]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "600 inputs" in done.stdout
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
    assert box.problems == [
        "a.json is not what the record says",
        "code 0 and no account of the run",
        "left in the output folder: .x.draft",
    ]


def test_a_traceback_and_an_odd_code_are_noticed():
    assert Finished(0, "").judge().problems == []
    assert Finished(1, "Traceback (most recent call last):").judge().problems == ["a traceback reached the user"]
    assert Finished(3, "").judge().problems == ["exit code 3", "code 3 without a word"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Iterator[Tools]:
    logger = logging.getLogger("boltzformer")
    before = (logger.level, logger.propagate)
    made = Tools(tmp_path_factory.mktemp("tools"))
    yield made
    logger.removeHandler(made.unexplained)
    logger.setLevel(before[0])
    logger.propagate = before[1]


def _scan(box: Sandbox) -> Path:
    (box.given / "a.nii").write_bytes(nifti())
    return box.given / "a.nii"


def _dataset(box: Sandbox) -> Path:
    (box.given / "dataset.json").write_text(json.dumps(dataset(box.given, np.random.default_rng(0))))
    return box.given


def _series(box: Sandbox, tools: Tools) -> Path:
    (box.given / "series").mkdir()
    for k, content in enumerate(series(tools.folder)):
        (box.given / "series" / f"I{k}.dcm").write_bytes(content)
    return box.given / "series"


WHOLE = {
    "command": lambda b, t: t.segment(_scan(b), b.out),
    "config": lambda b, t: t.infer(_scan(b), b.out, kinds._prompt_list(b)),
    "dicom": lambda b, t: t.segment(_series(b, t), b.out, "-f", "dicom-seg"),
    "prompt list": lambda b, t: t.segment(_scan(b), b.out, "--prompt-list", kinds._prompt_list(b), prompts=()),
    "weights": lambda b, t: t.segment(_scan(b), b.out, "--weights", t.checkpoint, fresh_network=True),
    "safetensors": lambda b, t: t.segment(_scan(b), b.out, "--weights", t.safetensors, fresh_network=True),
    "statistics": lambda b, t: t.shell("statistics", _dataset(b), "--output-dir", b.out),
    "cache": lambda b, t: t.shell("cache", _dataset(b), "--cache-dir", b.out, "--seconds", 0),
    "dataset": lambda b, t: t.segment(_dataset(b), b.out),
    "evaluation": lambda b, t: t.shell(
        *("evaluate-predictions", b.given / "predictions", _dataset(b), "--pictures", 0, "--output-dir", b.out)
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_inputs_are_done(tools, tmp_path, name):
    """Otherwise every damaged one would be refused for a reason that has nothing to do with its damage."""
    box = Sandbox(tmp_path / "box")
    tools.box = box
    done = WHOLE[name](box, tools)
    assert (done.code, done.problems, box.problems) == (0, [], []), done.output
    assert box.written()
