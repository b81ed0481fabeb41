"""What a training cost, counted over its whole length however often it was stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from boltzformer.training.effort import Effort
from ignite.engine import Events


class Killed(Exception):
    """Stands for the end of the process."""


def _counted(make_run, folder: Path, **options):
    run, effort = make_run(folder, **options), Effort(folder)
    run.train_handlers[0].states["effort"] = effort
    effort.attach(run.trainer)
    return run, effort


def _written(folder: Path) -> dict[str, float]:
    return json.loads((folder / "effort.json").read_text())


def test_pairs_and_time_of_the_steps_are_counted_and_nothing_else(make_run, tmp_path):
    run, effort = _counted(make_run, tmp_path, max_epochs=2)
    idle = 0.3

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def wait(engine):
        time.sleep(idle)

    begun, cpu = time.perf_counter(), time.process_time()
    run.trainer.run()
    found = _written(tmp_path)
    assert (found["steps"], found["pairs"]) == (12, 24)  # 2 epochs of 12 examples, 2 a step
    assert 0 < effort.cpu_seconds < time.process_time() - cpu
    assert 0 < effort.seconds < time.perf_counter() - begun - 2 * idle


@pytest.mark.parametrize("after", [2, 8])
def test_a_resumed_run_counts_on_from_its_checkpoint(make_run, tmp_path, after):
    cut, _ = _counted(make_run, tmp_path, max_epochs=2, every_minutes=1e-9)

    @cut.trainer.on(Events.ITERATION_COMPLETED(once=after))
    def kill(engine):
        raise Killed

    with pytest.raises(Killed):
        cut.trainer.run()
    again, effort = _counted(make_run, tmp_path, max_epochs=2, every_minutes=1e-9, resume=True)
    again.trainer.run()
    assert (effort.steps, effort.pairs) == (12, 24)
    assert _written(tmp_path)["pairs"] == 24
