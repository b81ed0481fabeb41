"""A user's mistake ends a run with one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def _run(statement: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from boltzformer.errors import InputError\n"
        "from boltzformer.error_report import report_input_errors_briefly\n"
        "report_input_errors_briefly()\nreport_input_errors_briefly()\n"
        f"try:\n    {statement}\nexcept Exception as error:\n    raise RuntimeError('wrapped') from error\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_input_error_is_one_line():
    done = _run("raise InputError('volume.nii is truncated: copy it again.')")
    assert done.returncode == 1
    assert done.stderr == "error: volume.nii is truncated: copy it again.\n"


def test_other_errors_keep_their_traceback():
    done = _run("1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr


def test_a_lost_process_is_one_line_though_its_error_is_wrapped():
    done = _run("raise RuntimeError('[pair.cc:538] Read error [127.0.0.1]:2984: Connection reset by peer')")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the run has lost another of its processes")
    assert "Connection reset by peer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_find_input_error_follows_the_chain():
    mistake = InputError("x")
    outer = RuntimeError("outer")
    outer.__cause__ = mistake
    assert find_input_error(outer) is mistake
    assert find_input_error(RuntimeError("alone")) is None
    assert find_input_error(None) is None


def test_ctrl_c_is_one_line():
    done = _run("raise KeyboardInterrupt")
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "Stopped.\n"
