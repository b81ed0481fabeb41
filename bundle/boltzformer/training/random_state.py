"""The random states of a run: python, numpy, torch and CUDA, of every process."""

from __future__ import annotations

import random
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist


def capture_random_state(device: torch.device | None) -> dict[str, Any]:
    """The random states of this process, as tensors and plain values that a safe `torch.load` reads.

    Args:
        device: the device that computes; its own generator is captured where it is a CUDA device.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def gather_random_state(device: torch.device | None) -> list[dict[str, Any]]:
    """The random states of all processes of the run, in the order of their ranks.

    Args:
        device: as in `capture_random_state`.
    """
    own = capture_random_state(device)
    if idist.get_world_size() == 1:
        return [own]
    states: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(states, own)
    return states


def restore_random_state(states: list[dict[str, Any]], device: torch.device | None) -> None:
    """Take up this process's random states.

    Args:
        states: what `gather_random_state` gave.
        device: as in `capture_random_state`.
    """
    state = states[idist.get_rank()]
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
