"""How far a run is and how fast: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedTrainer, Workflow

logger = logging.getLogger(__name__)


class Progress:
    """Ignite handler: loss, seconds a step, (slice, prompt) pairs a second, time spent waiting, time left.

    On a terminal a bar moves; everywhere a line is logged each `interval` seconds and at the end of each
    epoch. Only the first process of a distributed run speaks.

    Args:
        label: what the lines call this engine, "training" or "validation".
        interval: seconds between two lines.
        bar: whether to draw the bar; None where standard error is a terminal.
        measure_loader: times a loader alone, before the run, and gives an object with `pairs_per_second`; None
            does not.
    """

    def __init__(
        self,
        label: str = "training",
        interval: float = 15.0,
        bar: bool | None = None,
        measure_loader: Callable[[Any], Any] | None = None,
    ) -> None:
        self.label = label
        self.interval = interval
        self.bar = sys.stderr.isatty() if bar is None else bar
        self.measure_loader = measure_loader
        self._loader_rate = 0.0
        self._clear()

    def attach(self, engine: Workflow) -> None:
        """Report on `engine`, a MONAI trainer or evaluator."""
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._run_started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait_started)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._wait_ended)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step_ended)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_ended)
        if self.bar:
            ProgressBar(desc=self.label).attach(engine, output_transform=loss_of)

    def _clear(self) -> None:
        self._began = self._last_line = self._wait_began = time.perf_counter()
        self._waited = 0.0
        self._steps = self._pairs = 0
        self._loss_sum = 0.0

    def _run_started(self, engine: Workflow) -> None:
        if self.measure_loader is not None and not self._loader_rate and engine.state.epoch_length > 1:
            self._loader_rate = self.measure_loader(engine.data_loader).pairs_per_second
            logger.info("%s: the loader alone gives %.1f pairs/s", self.label, self._loader_rate)

    def _epoch_started(self, engine: Workflow) -> None:
        self._clear()

    def _wait_started(self, engine: Workflow) -> None:
        self._wait_began = time.perf_counter()

    def _wait_ended(self, engine: Workflow) -> None:
        self._waited += time.perf_counter() - self._wait_began

    def _step_ended(self, engine: Workflow) -> None:
        self._steps += 1
        self._pairs += pairs_of(engine.state.output)
        self._loss_sum += loss_of(engine.state.output).get("loss", 0.0)
        now = time.perf_counter()
        last = engine.state.iteration % engine.state.epoch_length == 0  # the epoch's own line follows
        if now - self._last_line >= self.interval and not last:
            self._last_line = now
            logger.info("%s", self._line(engine))

    def _epoch_ended(self, engine: Workflow) -> None:
        logger.info("%s", self._line(engine))

    def _line(self, engine: Workflow) -> str:
        """One line on the epoch so far."""
        state = engine.state
        busy = max(time.perf_counter() - self._began, 1e-9)
        seconds = busy / max(self._steps, 1)
        left_in_epoch = (-state.iteration) % state.epoch_length
        is_training = isinstance(engine, SupervisedTrainer)
        parts = [f"{self.label}: epoch {state.epoch}" + (f"/{state.max_epochs}" if is_training else "")]
        parts.append(f"step {state.epoch_length - left_in_epoch}/{state.epoch_length}")
        if isinstance(engine, SupervisedTrainer):
            parts.append(f"loss {self._loss_sum / max(self._steps, 1):.4f}")
            parts.append(f"lr {engine.optimizer.param_groups[0]['lr']:.2e}")
        parts.append(f"{seconds:.2f} s/step, {self._pairs / busy:.1f} pairs/s")
        if self._loader_rate:
            parts.append(f"loader alone {self._loader_rate:.1f} pairs/s")
        parts.append(f"waiting for data {100 * self._waited / busy:.0f} %")
        if left_in_epoch:
            parts.append(f"epoch ends in {_clock(left_in_epoch * seconds)}")
        if is_training:
            steps_left = state.epoch_length * state.max_epochs - state.iteration
            parts.append(f"training ends in {_clock(steps_left * seconds)}")
        return ", ".join(parts)


def loss_of(output: object) -> dict[str, float]:
    """The loss of MONAI's output, which is one dict a slice once the batch is split."""
    first = output[0] if isinstance(output, list) and output else output
    if not isinstance(first, dict) or "loss" not in first:
        return {}
    return {"loss": float(torch.as_tensor(first["loss"]).detach())}


def pairs_of(output: object) -> int:
    """(slice, prompt) pairs of an iteration: MONAI's output is one dict a pair once the batch is split."""
    return len(output["label"]) if isinstance(output, dict) else len(output) if isinstance(output, list) else 0


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
