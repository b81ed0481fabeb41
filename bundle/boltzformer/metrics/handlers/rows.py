"""What the Ignite handlers of this room share: rows of plain numbers, gathered once and counted once.

Masks are scored where they are and dropped; only rows are kept, so memory grows by some hundred bytes an item. Under
torch.distributed the rows of all processes are gathered at the end and each key counts once: a distributed sampler
pads its shards with repeated items, which would otherwise count twice. Rows are then sorted, so that every sum is the
same whatever the number of processes, and every process ends with the same numbers; process 0 writes and prints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from boltzformer.errors import InputError
from boltzformer.metrics.measures.rows import Place, Row


class RowHandler(ABC):
    """Collects rows from the decollated output of a MONAI evaluator.

    An item is a dict of the evaluator's output, filled up from the batch. Attach the handler as the evaluator's
    `key_val_metric` (`{"name": handler}`), as one of `additional_metrics`, or as one of `val_handlers`.

    Args:
        output_dir: folder for files; None writes nothing.
        name: key of the main metric in `engine.state.metrics`.
        item_keys: what every item must have.
        key_columns: what names a row; of several rows with one key the first counts.
    """

    def __init__(self, output_dir: str | None, name: str, item_keys: Sequence[str], key_columns: Sequence[str]) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.name = name
        self.item_keys = tuple(item_keys)
        self.key_columns = tuple(key_columns)
        self.rows: list[Row] = []

    def attach(self, engine: Engine, name: str | None = None) -> None:
        """Register on an evaluator; `name` (MONAI gives a key metric its own) replaces the constructor's."""
        self.name = name or self.name
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def reset(self, engine: Engine | None = None) -> None:
        """Forget the rows of the last run."""
        self.rows = []

    def update(self, engine: Engine) -> None:
        """Add the rows of this iteration's output.

        Raises:
            InputError: where an item lacks a key or its masks cannot be scored.
        """
        outputs, batch = engine.state.output, engine.state.batch
        if not isinstance(outputs, list):
            raise InputError(f"{type(self).__name__} reads decollated output: set decollate to true in the evaluator")
        batches = batch if isinstance(batch, list) else [{}] * len(outputs)
        for output, other in zip(outputs, batches, strict=True):
            item = {**other, **output}
            missing = [key for key in self.item_keys if key not in item]
            if missing:
                raise InputError(f"{type(self).__name__} needs {missing} in each item of the batch or output")
            self.rows.extend(self.item_rows(item))

    def finish(self, engine: Engine) -> None:
        """Gather the rows of all processes, set the engine's metrics; process 0 writes and prints."""
        self.rows = unique_rows(gather(self.rows), self.key_columns)
        engine.state.metrics.update(self.summarise(engine))
        if not _distributed() or dist.get_rank() == 0:
            self.publish()

    @abstractmethod
    def item_rows(self, item: Mapping[str, Any]) -> Sequence[Row]:
        """Rows of one item."""

    @abstractmethod
    def summarise(self, engine: Engine) -> dict[str, float]:
        """Metrics of the gathered rows in `self.rows`, on every process."""

    @abstractmethod
    def publish(self) -> None:
        """Write files and print, on process 0."""


def unique_rows(rows: Iterable[Row], key_columns: Sequence[str]) -> list[Row]:
    """Rows sorted by their key, each key once (the first stays).

    Raises:
        InputError: two rows of one key answer different prompts, or belong to two images of one name: neither is a
            repetition of the other.
    """
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[column] for column in key_columns)
        first = found.setdefault(key, row)
        if first is row:
            continue
        where = ", ".join(f"{column} {value}" for column, value in zip(key_columns, key, strict=True))
        # what a repetition cannot change, whatever the network marks in it
        if any(first.get(column) != row.get(column) for column in ("patient", "label_pixels")):
            raise InputError(
                f"{where} was scored against two labels. A case is named by dataset and image file: give "
                "images names of their own (not pt_1/ct.nii.gz and pt_2/ct.nii.gz), datasets too, and list an image "
                "with one label map of an object"
            )
        if first.get("text") != row.get("text"):
            raise InputError(
                f"{where} was scored with two prompts, '{first['text']}' and '{row['text']}': evaluate one wording "
                "at a time"
            )
    return [found[key] for key in sorted(found)]


def gather(rows: list[Row]) -> list[Row]:
    """Rows of all processes, on every process."""
    if not _distributed() or dist.get_world_size() == 1:
        return rows
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def as_mask(mask: Any) -> torch.Tensor:
    """A plain tensor: rows need no MetaTensor, whose bookkeeping is slow on many small items."""
    tensor: torch.Tensor = mask.as_tensor() if hasattr(mask, "as_tensor") else torch.as_tensor(mask)
    return tensor.detach()


def as_text(value: Any) -> str:
    """Decollating may leave a string in a list of one, or a number in a 0-d tensor."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return str(value.item()) if isinstance(value, torch.Tensor) else str(value)


def place_of(item: Mapping[str, Any]) -> Place:
    """Where an item comes from; the patient is the case where none is given."""
    dataset, case, name = (as_text(item[key]) for key in ("dataset", "case", "object"))
    return Place(dataset=dataset, case=case, patient=as_text(item.get("patient", case)), object=name)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
