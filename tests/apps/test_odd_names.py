"""Names of files that other systems gave: the batch goes on, and says what is wrong with the one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import body, save_nifti

ODD = os.fsdecode(b"M\xfcller.nii.gz")


def test_a_name_that_is_no_utf8_fails_alone(segment, tmp_path):
    scan = save_nifti(tmp_path / "scans" / "a [old] :x:.nii.gz", body((24, 20, 4)), np.eye(4))
    try:
        (tmp_path / "scans" / ODD).write_bytes(scan.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    done = segment(tmp_path / "scans", "liver", "-o", tmp_path / "out")
    assert done.exit_code == 1, done.output
    account = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert {entry["name"]: entry["status"] for entry in account["entries"]} == {
        os.fsdecode(b"M\xfcller"): "failed",
        "a [old] :x:": "done",
    }
    assert "a [old] :x:: liver:" in done.stdout  # no markup, no emoji
    assert "its name is no UTF-8 text; rename it" in done.output


def test_a_pipe_that_lacks_a_letter_ends_no_command(tmp_path):
    program = "import sys; from boltzformer.apps import cli; cli.app = lambda: print(sys.argv[1]); cli.main()"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(__file__).parents[2] / "bundle")}
    done = subprocess.run([sys.executable, "-c", program, "日 ü"], capture_output=True, env=environment)
    assert done.stdout.strip() == b"\\u65e5 \xfc", done.stderr
