"""Mutants: one small fault each, and the closest tests, which must fail; says who survived.

python -m tests.mutation                        all of the table
python -m tests.mutation --match training/      those of files whose path fits the regular expression
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.json")
SECONDS = 900
# Imported once, here; each test run is a fork of this process, which has nothing of the package yet.
LIBRARIES = ("torch", "monai.bundle", "monai.engines", "monai.handlers", "monai.losses", "ignite.distributed", "timm")
LIBRARIES += ("scipy.optimize", "scipy.ndimage", "nibabel", "pydicom", "SimpleITK", "transformers", "safetensors.torch")


def read_table() -> list[dict[str, Any]]:
    """The mutants: `file`, `find` (stands there once), `put` in its place, `tests` that must notice."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def main() -> int:
    """Run the mutants; 0 where none survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--match", default="")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    chosen = [mutant for mutant in read_table() if re.search(options.match, mutant["file"])]
    chosen = chosen[options.first : options.first + options.count]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = _copy(Path(folder))
        for name in LIBRARIES:
            importlib.import_module(name)
        if not _pass(copy, sorted({test for mutant in chosen for test in mutant["tests"]})):
            print("the tests fail without any mutant")
            return 2
        survived = [mutant for mutant in chosen if not _try(copy, mutant)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutants killed, {len(survived)} survived")
    return 1 if survived else 0


def _copy(folder: Path) -> Path:
    """The checkout without its history; the large weights by a link."""
    made = ("__pycache__", ".*_cache", "runs", "cache", "label_server", "demo_output")
    names = shutil.ignore_patterns(".git", ".venv*", "models", *made)
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=names, symlinks=True)
    (copy / "bundle" / "models").symlink_to(ROOT / "bundle" / "models")
    return copy


def _is_killed(copy: Path, mutant: dict[str, Any]) -> bool:
    file = copy / mutant["file"]
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutant["find"], mutant["put"]), encoding="utf-8")
    try:
        return not _pass(copy, mutant["tests"])
    finally:
        file.write_text(whole, encoding="utf-8")


def _pass(copy: Path, tests: Iterable[str]) -> bool:
    """Whether the tests pass, in a child of this process; a fault that hangs or kills it is noticed too."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            code = _run_tests(copy, [f"tests/{test}" for test in tests])
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run_tests(copy: Path, tests: list[str]) -> int:
    os.chdir(copy)
    here = {str(ROOT), str(ROOT / "bundle"), ""}
    sys.path[:] = [str(copy / "bundle"), str(copy), *(place for place in sys.path if place not in here)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "boltzformer")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    sys.dont_write_bytecode = True
    log = os.open(copy.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def _try(copy: Path, mutant: dict[str, Any]) -> bool:
    began = time.monotonic()
    killed = _is_killed(copy, mutant)
    state = "killed  " if killed else "SURVIVED"
    seconds = f"{time.monotonic() - began:.0f} s"
    print(f"{state} {mutant['file']}: {mutant['find']!r} -> {mutant['put']!r} ({seconds})", flush=True)
    return killed


if __name__ == "__main__":
    sys.exit(main())
