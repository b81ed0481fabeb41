"""Whether a state that was read is an optimizer's: torch itself finds out in the middle of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


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
