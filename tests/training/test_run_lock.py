"""Two runs in one folder: the second is refused, by name of the first."""

from __future__ import annotations

import subprocess
import sys

import pytest
from boltzformer.errors import InputError
from boltzformer.training.run_lock import RunLock
from ignite.engine import Engine, Events

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def _engine(lock, step=lambda engine, batch: None):
    engine = Engine(step)
    lock.attach(engine)
    return engine


def test_a_second_run_is_refused_by_the_name_of_the_first(tmp_path):
    outer = _engine(RunLock([tmp_path / "out", tmp_path / "model.pt"]))
    refused = []

    def second(engine):
        for path in ("out", "model.pt"):
            with pytest.raises(
                InputError, match=r"is in use by .* process \d+, since .*another `output_dir`"
            ) as caught:
                _engine(RunLock([tmp_path / path])).run([0])
            refused.append(str(caught.value))

    outer.add_event_handler(Events.ITERATION_COMPLETED, second)
    outer.run([0])
    assert len(refused) == 2
    _engine(RunLock([tmp_path / "out", tmp_path / "model.pt"])).run([0])  # released at the end


def test_the_lock_is_released_after_a_failure(tmp_path):
    def fail(engine, batch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _engine(RunLock([tmp_path]), fail).run([0])
    _engine(RunLock([tmp_path])).run([0])


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".run.lock")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="in use"):
        _engine(RunLock([tmp_path])).run([0])
    process.kill()
    process.wait()
    _engine(RunLock([tmp_path])).run([0])
