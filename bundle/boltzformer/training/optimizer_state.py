"""Taking up an optimizer's state that was read, if it is one: torch itself finds out in the middle of a step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


def load_optimizer_state(optimizer: Optimizer, found: Mapping[str, Any]) -> None:
    """Take up the moments of an earlier run's optimizer, and keep this run's settings.

    torch would take up its settings too, so that a learning rate or weight decay given to the resumed run would do
    nothing.

    Args:
        optimizer: that goes on.
        found: what `optimizer.state_dict()` gave in another process.

    Raises:
        ValueError: see `check_optimizer_state`, or other groups of parameters.
    """
    check_optimizer_state(optimizer, found)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(found))
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        for key, value in own.items():
            # rates change from step to step; their schedule tells of others
            if key not in ("lr", "initial_lr") and key in group and group[key] != value:
                logger.warning("this run goes on with %s %s, it had %s", key, value, group[key])
        group.update(own)


def check_optimizer_state(optimizer: Optimizer, found: Mapping[str, Any]) -> None:
    """Look at the kinds of a state's entries, not at their values.

    Args:
        optimizer: that is to take it up.
        found: what `optimizer.state_dict()` gave in another process.

    Raises:
        ValueError: an entry is of another kind than belongs there, or missing.
    """
    for number, (own, group) in enumerate(zip(optimizer.param_groups, found["param_groups"], strict=True)):
        for key, value in own.items():
            if key in group and key != "params" and value is not None and not _alike(value, group[key]):
                raise ValueError(f"optimizer: {key} of group {number} is a {type(group[key]).__name__}")
    names: set[frozenset[str]] = set()
    for number, entry in found["state"].items():
        if not isinstance(entry, Mapping) or not all(isinstance(v, Tensor | int | float) for v in entry.values()):
            raise ValueError(f"optimizer: the state of parameter {number} holds no numbers")
        names.add(frozenset(map(str, entry)))
    if len(names) > 1:
        raise ValueError("optimizer: the states of its parameters have different entries")
    for group, whole in zip(optimizer.param_groups, found["param_groups"], strict=True):
        for parameter, number in zip(group["params"], whole["params"], strict=True):
            for key, value in found["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"optimizer: {key} of parameter {number} has the shape {tuple(value.shape)}")


def _alike(own: Any, found: Any) -> bool:
    if isinstance(own, list | tuple):
        return isinstance(found, list | tuple) and len(own) == len(found) and all(map(_alike, own, found))
    number = int | float | Tensor
    return isinstance(found, number) if isinstance(own, number) else isinstance(found, type(own))
