"""Curves of a run as a table and a picture, written without being asked."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from matplotlib.figure import Figure
from monai.engines import Evaluator, Workflow

from boltzformer.output_files import write_bytes, write_file
from boltzformer.training.progress import loss_of

COLUMNS = ("epoch", "loss", "val_loss", "val_dice", "learning_rate")
CSV_NAME, PNG_NAME = "curves.csv", "curves.png"


class Curves:
    """Ignite handler: `<output_dir>/curves.csv` and `curves.png`, an epoch a row, written anew after each epoch.

    Attach it behind `ValidationHandler`, and list it among `RunCheckpoint`'s states, so that a resumed run goes on with
    its curves. Epoch 0 is the validation before the first step, where there is one. Only the first process of a
    distributed run writes; its training loss is that of its own share of the data.

    Args:
        output_dir: the run's folder.
        validator: whose metrics are drawn.
    """

    def __init__(self, output_dir: str | os.PathLike[str], validator: Evaluator) -> None:
        self.output_dir = Path(output_dir)
        self.validator = validator
        self.rows: list[list[float | None]] = []
        self._sum, self._steps = 0.0, 0

    def attach(self, engine: Workflow) -> None:
        """Follow `engine`, the trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The rows, and the loss of the epoch so far."""
        return {"rows": [list(row) for row in self.rows], "sum": self._sum, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an earlier run's state."""
        self.rows = [[None if value is None else float(value) for value in row] for row in state["rows"]]
        self._sum, self._steps = float(state["sum"]), int(state["steps"])

    def _started(self, engine: Workflow) -> None:
        validated = self.validator.state.epoch == 0 and "val_dice" in self.validator.state.metrics
        if not self.rows and engine.state.iteration == 0 and validated:
            self._add_validated(0, None, None)

    def _after_step(self, engine: Workflow) -> None:
        self._sum += loss_of(engine.state.output)["loss"]
        self._steps += 1

    def _after_epoch(self, engine: Workflow) -> None:
        optimizer: Any = getattr(engine, "optimizer", None)
        rate = None if optimizer is None else float(optimizer.param_groups[0]["lr"])
        self._add_validated(engine.state.epoch, self._sum / max(self._steps, 1), rate)
        self._sum, self._steps = 0.0, 0
        if idist.get_rank() == 0:
            self.write()

    def _add_validated(self, epoch: int, loss: float | None, rate: float | None) -> None:
        state = self.validator.state
        measured = state.metrics if state.epoch == epoch else {}
        values = [measured.get(name) for name in ("val_loss", "val_dice")]
        self.rows.append([float(epoch), loss, *(None if value is None else float(value) for value in values), rate])

    def write(self) -> None:
        """Write both files.

        Raises:
            InputError: they cannot be written.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([int(row[0] or 0), *("" if v is None else f"{v:.6g}" for v in row[1:])] for row in self.rows)
        write_bytes(self.output_dir / CSV_NAME, buffer.getvalue().encode())
        write_file(self.output_dir / PNG_NAME, lambda file: self._figure().savefig(file, format="png", dpi=100))

    def _figure(self) -> Figure:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        losses, dice = figure.subplots(1, 2)
        for axes, names in ((losses, ("loss", "val_loss")), (dice, ("val_dice",))):
            for name in names:
                column = COLUMNS.index(name)
                points = [(row[0], row[column]) for row in self.rows if row[column] is not None]
                axes.plot([x for x, _ in points], [y for _, y in points], ".-", label=name)
            axes.set_xlabel("epoch")
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
        dice.set_ylim(0, 1)
        return figure
