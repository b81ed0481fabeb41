"""torchrun, and one of its workers is killed: the run ends in time with a line, and goes on to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from boltzformer.weights import read_checkpoint

from tests.configs.conftest import ENVIRONMENT, bundle_command, settings
from tests.support import BUNDLE

SECONDS = 300
"""torchrun gives the other workers 30 s to end; a busy machine takes longer."""


def _worker(parent: int, rank: str) -> int:
    """The child process of torchrun with a rank."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            environment = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if int(lines["PPid"]) == parent and b"RANK=" + rank.encode() in environment:
            return int(status.parent.name)
    raise AssertionError(f"torchrun {parent} has no worker {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="workers are found in /proc")
def test_a_killed_worker_ends_torchrun_and_the_run_goes_on_to_the_same_weights(phantoms, overlay, run_bundle, tmp_path):
    files = ("configs/train.json", "configs/multi_gpu_train.json", overlay)
    train = [*bundle_command("training", *files, processes=2), "--checkpoint_every_minutes", "0.0001"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_bundle([*train, *settings(whole, phantoms)])

    output = tmp_path / "said"
    with output.open("w") as said:
        command = [*train, *settings(cut, phantoms)]
        process = subprocess.Popen(command, cwd=BUNDLE, env=ENVIRONMENT, stdout=said, stderr=subprocess.STDOUT)
    last = cut / "out" / "last.pt"
    until = time.monotonic() + 600
    while not last.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, output.read_text()[-3000:]
    os.kill(_worker(process.pid, "1"), signal.SIGKILL)
    assert process.wait(SECONDS) not in (0, None)
    told = output.read_text()
    assert "error: the run has lost another of its processes" in told or "saves its state after this step" in told, told
    assert "Signal 9 (SIGKILL)" in told  # torchrun's own account

    done = read_checkpoint(last)["progress"]  # whole, by its checksum
    assert 0 < done["iteration"] < 2 * done["epoch_length"]
    run_bundle([*train, *settings(cut, phantoms), "--resume", "true"])
    for name in ("out/last.pt", "model.pt"):
        one, other = (read_checkpoint(folder / name) for folder in (whole, cut))
        one, other = (content.get("network", content) for content in (one, other))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
