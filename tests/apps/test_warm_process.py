"""A module run in a process that was forked from one with PyTorch and MONAI in it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from boltzformer.apps.warm_process import run_module

PROGRAM = """
import os, sys, signal
print(sys.argv[1:], os.getcwd(), __name__, "torch" in sys.modules, flush=True)
print("to stderr", file=sys.stderr, flush=True)
if sys.argv[1] == "fail":
    raise ValueError("on purpose")
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("3", 3), ("fail", 1), ("kill", -signal.SIGKILL)])
def test_it_is_as_the_command_would_be(tmp_path, word, code):
    (tmp_path / "program_of_a_test.py").write_text(PROGRAM)
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    place, words = os.getcwd(), list(sys.argv)
    assert run_module("program_of_a_test", [word, "b"], tmp_path, log) == code
    lines = log.read_text().splitlines()
    assert lines[:3] == ["before", f"['{word}', 'b'] {tmp_path} __main__ True", "to stderr"]
    assert ("ValueError: on purpose" in lines) == (word == "fail")
    assert (os.getcwd(), sys.argv) == (place, words)
    assert "program_of_a_test" not in sys.modules
    assert str(tmp_path) not in map(str, map(Path, sys.path))
