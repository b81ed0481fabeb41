"""A run of two processes of which one is killed, or gets a signal alone."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from boltzformer.error_report import report_input_errors_briefly
from boltzformer.weights import read_checkpoint
from ignite.engine import Events

from tests.training.conftest import build_run

SECONDS = 60
"""By then a run that lost a process has ended; it takes one or two."""


def _train(rank: int, folder: str, resume: bool, number: int) -> None:
    """One of two processes; with a signal's `number` the second one gets it after its fourth step."""
    with open(Path(folder) / f"said-by-{rank}", "a") as said:
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    place = Path(folder, f"meeting-{resume}")
    dist.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS / 2)
    )
    run = build_run(Path(folder), distributed=True, every_minutes=1e-9, max_epochs=3, num_examples=12, resume=resume)
    if number and rank == 1:
        event = Events.ITERATION_COMPLETED(once=4)
        run.trainer.add_event_handler(event, lambda engine: os.kill(os.getpid(), number))
    try:
        report_input_errors_briefly()
        run.trainer.run()
    except Exception:  # as the interpreter would, whose hook multiprocessing does not call
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)
    told = {
        "epoch": run.trainer.state.epoch,
        "metrics": run.validator.state.metrics,
        "stopping": run.early_stopping.state_dict(),
        "buffers": [buffer.tolist() for buffer in run.network.buffers()],
    }
    Path(folder, f"ended-{rank}.json").write_text(json.dumps(told))
    run.train_handlers[0].interruption.leave()


def _run(folder: Path, resume: bool = False, number: int = 0) -> list[int | None]:
    """Both processes; their codes, None for one that has not ended in time."""
    folder.mkdir(exist_ok=True)
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.conftest"])  # the libraries are imported once
    started = [context.Process(target=_train, args=(rank, str(folder), resume, number)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert _run(folder) == [0, 0]
    return folder


def _same(first: Path, second: Path) -> bool:
    left, right = (read_checkpoint(path) for path in (first, second))
    states = [content.get("network", content) for content in (left, right)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def _assert_resumes_to(whole: Path, cut: Path) -> None:
    done = read_checkpoint(cut / "last.pt")["progress"]  # whole, by its checksum
    assert 0 < done["iteration"] <= 4
    assert not _same(cut / "last.pt", whole / "last.pt")
    assert _run(cut, resume=True) == [0, 0]
    assert _same(cut / "last.pt", whole / "last.pt")
    assert _same(cut / "model.pt", whole / "model.pt")


def test_processes_of_unequal_shards_see_one_validation_and_one_network(whole):
    first, second = (json.loads((whole / f"ended-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first["buffers"]) == 3
    assert first["metrics"]["val_loss"] > 0


def test_a_killed_process_ends_the_run_and_it_resumes_to_the_same_weights(whole, tmp_path):
    cut = tmp_path / "cut"
    codes = _run(cut, number=signal.SIGKILL)
    assert codes == [1, -signal.SIGKILL]
    said = (cut / "said-by-0").read_text()
    assert "error: the run has lost another of its processes" in said
    assert "Traceback" not in said.split("error: the run has lost")[1]
    _assert_resumes_to(whole, cut)


def test_a_signal_to_one_process_stops_both(whole, tmp_path):
    cut = tmp_path / "cut"
    assert _run(cut, number=signal.SIGTERM) == [128 + signal.SIGTERM] * 2
    assert read_checkpoint(cut / "last.pt")["progress"]["iteration"] == 4
    _assert_resumes_to(whole, cut)
