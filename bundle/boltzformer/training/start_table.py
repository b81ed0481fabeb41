"""What a training is about to do, told at its start: data, what is left out of them, network, settings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.engines import Workflow
from torch import nn

from boltzformer.data.slice_dataset import SliceDataset
from boltzformer.data.wordings import object_key

logger = logging.getLogger(__name__)

SLOW_START_RATE = 2e-4
RANDOM_START_RATE = 5e-4
LARGE_ON_CPU = 512
_MAX_NAMED = 5


class StartTable:
    """Ignite handler: logs a table of a training before its first step, and hints where the settings will disappoint.

    List it behind `RunLog`, so that the table stands in the log too. Only the first process speaks.

    Args:
        training: the training examples.
        validation: the validation examples.
        network: the bare network.
        settings: further lines, label to value; `learning rate`, `device` and `working size, px` are looked at for the
            hints.
        start: where the network's weights come from; None is a random start.
        known: objects that these weights know.
    """

    def __init__(
        self,
        training: SliceDataset,
        validation: SliceDataset,
        network: nn.Module,
        settings: Mapping[str, Any] | None = None,
        start: str | None = None,
        known: Iterable[str] = (),
    ) -> None:
        self.training = training
        self.validation = validation
        self.network = network
        self.settings = dict(settings or {})
        self.start = start
        self.known = list(known)

    def attach(self, engine: Workflow) -> None:
        """Tell at the start of `engine`, the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Log the table and the hints."""
        if idist.get_rank() > 0:
            return
        logger.info("this training:\n%s", "\n".join(self.lines()))
        for hint in self.hints():
            logger.warning("%s", hint)

    def lines(self) -> list[str]:
        """The table, a line for each entry."""
        parts = list(self.network.parameters())
        million = [sum(p.numel() for p in some) / 1e6 for some in (parts, [p for p in parts if p.requires_grad])]
        table = {
            "training": _examples(self.training),
            "validation": _examples(self.validation),
            "network": f"{type(self.network).__name__}, {million[0]:.1f} M weights, {million[1]:.1f} M of them learn",
            "start": self.start or "random weights",
            **{label: _told(value) for label, value in self.settings.items()},
        }
        lines = [f"  {label:<18} {value}" for label, value in table.items()]
        return [*lines, *_objects(self.training), *_left_out(self.training, "training")]

    def hints(self) -> list[str]:
        """What is likely to disappoint, each with the setting that helps."""
        found = []
        rate = self.settings.get("learning rate")
        if self.start is None and isinstance(rate, float) and rate < SLOW_START_RATE:
            found.append(
                f"a learning rate of {rate:g} is slow from random weights: try --learning_rate {RANDOM_START_RATE:g} "
                "(bundle/docs/training.md)"
            )
        size = int(np.max(self.settings.get("working size, px", 0)))
        if str(self.settings.get("device", "")) == "cpu" and size >= LARGE_ON_CPU:
            found.append(
                f"slices of {size} px take days on a CPU: leave out the network's overlay (256 px), or take a GPU"
            )
        taught = {object_key(name) for name in self.training.counts()}  # a datalist may name more than its cases hold
        if forgotten := [name for name in self.known if object_key(name) not in taught]:
            found.append(
                f"the start knows {_listed(forgotten)}, which no case here shows: training makes it forget them. To "
                "keep them: boltzformer finetune --keep-known, and for what that leaves out boltzformer prepare known "
                "--object NAME (bundle/docs/training.md)"
            )
        return found


def _examples(data: SliceDataset) -> str:
    patients = len({case["patient"] for case in data.data})
    negatives = f" and {data.num_negatives} without" if data.num_negatives else ""
    counted = f"{len(data.data)} cases of {patients} patients, {len(data.slices)} slices"
    return f"{counted}; {len(data.examples)} (slice, object) pairs with the object{negatives}"


def _objects(data: SliceDataset) -> list[str]:
    """A line for each object: cases, slices, share of the slice, wordings."""
    counts, shares = data.counts(), data.mean_shares()
    lines = []
    for name in sorted({name for case in data.data for name in case["objects"].values()}):
        holders = sum(
            any(name == case["objects"].get(value) for value in volume.values)
            for case, volume in zip(data.data, data.volumes, strict=True)
        )
        wordings = {
            text
            for case in data.data
            for value, own in case["objects"].items()
            if own == name
            for text in data.wordings.for_case(case, value)
        }
        share = f", {100 * shares[name]:.2g} % of the slice" if name in shares else ""
        lines.append(
            f"  object {name!r}: in {holders} cases, {counts.get(name, 0)} slices{share}; {len(wordings)} wordings"
        )
    return lines


def _left_out(data: SliceDataset, what: str) -> list[str]:
    """Which cases give no example, and which objects are taken for not drawn."""
    with_example = set(np.unique(data.examples[:, 0]).tolist())
    without = [str(case["image"]) for number, case in enumerate(data.data) if number not in with_example]
    lines = []
    if without:
        lines.append(
            f"  left out: {len(without)} of {len(data.data)} {what} cases hold no object, so they give no positive "
            f"example ({_listed(without)})"
        )
    absent = sum(
        value not in volume.values and value not in case.get("annotated", ())
        for case, volume in zip(data.data, data.volumes, strict=True)
        for value in case["objects"]
    )
    if absent:
        lines.append(
            f"  left out: {absent} times an object is absent from a whole case and counts as not drawn, so it gives no "
            'negatives; `"annotated": "all"` in the datalist says that it was looked for'
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
