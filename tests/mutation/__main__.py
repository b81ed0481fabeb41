"""Mutants: one small fault each, and the closest tests, which must fail; says who survived.

python -m tests.mutation                        all of the table
python -m tests.mutation --match training/      those of files whose path holds the text
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.json")
SECONDS = 900


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
    chosen = [mutant for mutant in read_table() if options.match in mutant["file"]]
    chosen = chosen[options.first : options.first + options.count]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = _copy(Path(folder))
        broken = [tests for tests in sorted({tuple(m["tests"]) for m in chosen}) if not _pass(copy, tests)]
        if broken:
            print(f"these tests fail without any mutant: {broken}")
            return 2
        survived = [mutant for mutant in chosen if not _told(_is_killed(copy, mutant), mutant)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutants killed, {len(survived)} survived")
    return 1 if survived else 0


def _copy(folder: Path) -> Path:
    """The checkout without its history; the large weights by a link."""
    names = shutil.ignore_patterns(".git", ".venv", "models", "__pycache__", ".*_cache", "runs", "cache")
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


def _pass(copy: Path, tests: Any) -> bool:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    path = os.pathsep.join([str(copy / "bundle"), str(copy)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:  # a fault that hangs is noticed too
        return False
    return done.returncode == 0


def _told(killed: bool, mutant: dict[str, Any]) -> bool:
    state = "killed  " if killed else "SURVIVED"
    print(f"{state} {mutant['file']}: {mutant['find']!r} -> {mutant['put']!r}", flush=True)
    return killed


if __name__ == "__main__":
    sys.exit(main())
