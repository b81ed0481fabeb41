"""What a training cost: steps, pairs, and time, so that rows of a table can be compared at equal effort."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from monai.engines import Workflow

from boltzformer.output_files import write_bytes
from boltzformer.training.progress import pairs_of

NAME = "effort.json"


class Effort:
    """Ignite handler: `<output_dir>/effort.json`, written anew after each epoch.

    It holds `steps`; `pairs`, the (slice, prompt) pairs of all steps; `cpu_seconds`, the processor time of this process
    and its threads; and `seconds` by the clock. Times are those of loading and stepping: validation, checkpoints and
    the start do not count, nor do processes that load data. With several processes, pairs and processor time are the
    first one's times their number.

    List it among `RunCheckpoint`'s states: a resumed run then goes on counting, and what was lost between the last
    checkpoint and the end of a killed process counts nowhere.

    Args:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.path = Path(output_dir) / NAME
        self.steps = self.pairs = 0
        self.cpu_seconds = self.seconds = 0.0
        self._begun = (0.0, 0.0)

    def attach(self, engine: Workflow) -> None:
        """Count the steps of `engine`, a MONAI trainer."""
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._before_batch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {
            "steps": self.steps,
            "pairs": self.pairs,
            "cpu_seconds": self.cpu_seconds,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an earlier run's state."""
        self.steps, self.pairs = int(state["steps"]), int(state["pairs"])
        self.cpu_seconds, self.seconds = float(state["cpu_seconds"]), float(state["seconds"])

    def _before_batch(self, engine: Workflow) -> None:
        self._begun = (time.process_time(), time.perf_counter())

    def _after_step(self, engine: Workflow) -> None:
        processes = idist.get_world_size()
        self.steps += 1
        self.pairs += pairs_of(engine.state.output) * processes
        self.cpu_seconds += (time.process_time() - self._begun[0]) * processes
        self.seconds += time.perf_counter() - self._begun[1]

    def write(self) -> None:
        """Write the file.

        Raises:
            InputError: it cannot be written.
        """
        if idist.get_rank() == 0:
            rounded = {name: round(value, 1) for name, value in self.state_dict().items()}
            write_bytes(self.path, (json.dumps(rounded, indent=4) + "\n").encode())
