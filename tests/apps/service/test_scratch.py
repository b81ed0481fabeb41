"""What a killed service leaves behind goes at the next start, and nothing of one that lives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from boltzformer.apps.service.jobs import Jobs
from boltzformer.apps.service.limits import Limits
from boltzformer.apps.service.scratch import Scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(place: Path, number: int, lock: bool) -> Path:
    folder = place / f"boltzformer-serve-{number}-abc"
    (folder / "request").mkdir(parents=True)
    (folder / "request" / "scan.nii.gz").write_bytes(b"a patient")
    if lock:
        (folder / ".lock").touch()
    return folder


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_restart_under_the_same_number_deletes_what_the_killed_service_left(temporary):
    # in a container every start has the same number
    left = [left_behind(temporary, number, True) for number in (os.getpid(), os.getppid(), dead_process())]
    jobs = Jobs(lambda job: None, Limits())
    jobs.start()
    assert not any(folder.exists() for folder in left)
    jobs.stop()
    assert not list(temporary.iterdir())


def test_folders_of_an_older_version_go_by_their_process(temporary):
    dead, alive = (left_behind(temporary, number, False) for number in (dead_process(), os.getppid()))
    jobs = Jobs(lambda job: None, Limits())
    jobs.start()
    jobs.stop()
    assert not dead.exists()
    assert alive.exists()


def test_a_living_service_keeps_its_requests(temporary):
    first = Jobs(lambda job: None, Limits())
    first.start()
    scan = first.reserve() / "scan"
    scan.touch()
    hidden = Scratch.make()  # seen from another container, a living process may seem dead
    apart = hidden.folder.rename(temporary / f"boltzformer-serve-{dead_process()}-abc")
    second = Jobs(lambda job: None, Limits())
    second.start()
    assert scan.exists()
    assert apart.exists()
    hidden.lock.release()
    first.stop()
    second.stop()
    assert not scan.exists()
