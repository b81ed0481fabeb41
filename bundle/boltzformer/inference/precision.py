"""How inference computes: slice by slice, or in a hurry; in float32, or with the image encoder in bfloat16.

"plain": every slice and every prompt by itself, the reference.
"float32": in groups (`HurriedNetwork`); logits are the reference's up to rounding.
"bfloat16": in groups, with the image encoder in bfloat16: twice as fast on CPUs with such arithmetic. Logits differ
    enough to move the border of a mask here and there (`bundle/docs/speed.md`), so it is for who asks for it.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, cast, get_args

import torch

from boltzformer.cpu import cpu_has_bfloat16
from boltzformer.errors import InputError
from boltzformer.networks.boltzformer import BoltzFormer
from boltzformer.networks.hurried import HurriedNetwork, group_of

logger = logging.getLogger(__name__)

Precision = Literal["plain", "float32", "bfloat16"]


def check_precision(wanted: str) -> Precision:
    """Raise an InputError for an unknown name; one line says where the CPU is slow at what is asked for."""
    if wanted not in get_args(Precision):
        raise InputError(f"precision is {wanted!r}: expected one of {', '.join(get_args(Precision))}.")
    return cast(Precision, wanted)


def hurried(network: Any, precision: Precision) -> Any:
    """The network that computes: a `HurriedNetwork`, or the given one with "plain" and where it has no such form.

    Args:
        network: in evaluation mode, on its device.
        precision: see above.

    Raises:
        InputError: bfloat16 for a network that has no such form: a baseline, or several decodings of one slice.
    """
    if not _computes_in_groups(network, precision):
        return network
    if precision == "bfloat16" and next(network.parameters()).device.type == "cpu" and not cpu_has_bfloat16():
        logger.warning("precision bfloat16: this CPU has no such arithmetic, so it is slower than float32 here")
    return HurriedNetwork(network, getattr(torch, precision))


def computation_of(network: Any, precision: Precision, autocast: torch.dtype | None = None) -> str:
    """How masks are computed, for the notes beside them.

    Args:
        network: see `hurried`.
        precision: see above.
        autocast: lower precision of the whole network.
    """
    kind = "float32" if autocast is None else f"autocast {str(autocast).removeprefix('torch.')}"
    if not _computes_in_groups(network, precision):
        return f"{kind}, slice by slice"
    encoder = ", image encoder in bfloat16" if precision == "bfloat16" else ""
    return f"{kind}{encoder}, in groups of {group_of(network)} slices"


def _computes_in_groups(network: Any, precision: Precision) -> bool:
    if precision == "plain":
        return False
    if isinstance(network, BoltzFormer) and not network.plain and network.batch_invariant:
        return True
    if precision == "bfloat16":
        raise InputError("precision bfloat16 is for a BoltzFormer that is decoded once; take float32, or `amp`.")
    return False
