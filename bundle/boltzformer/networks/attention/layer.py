"""The cross-attention layer, and the choice among the forms that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from boltzformer.errors import InputError

from .dense import attend_dense
from .gathered import attend_gathered, attend_kernel, kernel_computes
from .patches import Patches
from .plain import attend_plain
from .projections import Projections

Form = Literal["auto", "plain", "dense", "gathered", "kernel"]
Attend = Callable[[Projections, Tensor, Patches, Tensor, "Tensor | None"], tuple[Tensor, Patches]]

# Share of all (query, patch) pairs below which reading the sets alone takes less time than reading every patch,
# measured with 8 heads. A set of its own for each head has every row read for one head instead of all.
KERNEL_PAYS_BELOW, KERNEL_PAYS_BELOW_BY_HEAD = 0.75, 0.25
GATHERING_PAYS_BELOW = 0.15  # over the sets a query
GATHERING_PAYS_FROM = 2048  # patches of a grid; below, whole products take less time than the copies


class BoltzmannAttention(nn.Module):
    """Cross-attention of queries over their attention sets, residual and LayerNorm (post-norm).

    The function is that of `nn.MultiheadAttention` with a boolean mask, keys `V + level + position` and values
    `V + level`.

    Args:
        dim: d, width of queries and patches.
        num_heads: H; must divide `dim`.
        form: how it is computed, all equal up to rounding: "plain" (to read and to compare with), "dense", "gathered",
            "kernel" (inference on a CPU with numba), or "auto", which takes the fastest.

    Raises:
        InputError: an unknown form.
    """

    def __init__(self, dim: int = 256, num_heads: int = 8, form: Form = "auto") -> None:
        super().__init__()
        if form not in ("auto", "plain", "dense", "gathered", "kernel"):
            raise InputError(f"form={form!r} must be 'auto', 'plain', 'dense', 'gathered' or 'kernel'")
        self.form: Form = form
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, queries: Tensor, position: Tensor, patches: Patches, level: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Patches]:
        """Attend and update.

        Args:
            queries: (B, m, d).
            position: learned position of the queries, (m, d).
            patches: V of this layer's scale, S slices, B / S prompts for each.
            level: learned embedding of the scale, (d,), part of every key and value.
            kept: attention sets, bool (1 or B, 1 or H, m, h * w); None for all patches.

        Returns:
            Updated queries, (B, m, d), and the patches for the next layer of the scale.
        """
        weights = Projections.of(self.attention)
        attend = form_for(self.form, queries, patches, kept)
        attended, patches = attend(weights, queries + position, patches, level, kept)
        out = self.attention.out_proj(attended.transpose(1, 2).flatten(2))
        return self.norm(queries + out), patches


def form_for(form: Form, queries: Tensor, patches: Patches, kept: Tensor | None) -> Attend:
    """The function that computes a layer: the one asked for, or the fastest.

    Sets are measured only where that costs no synchronisation with a device; all patches (None) are dense.
    """
    if form == "plain":
        return attend_plain
    if kept is None or form == "dense":
        return attend_dense
    if form in ("gathered", "kernel"):
        return attend_gathered if form == "gathered" else attend_kernel
    if kept.device.type != "cpu" or torch.compiler.is_compiling():
        return attend_dense
    kernel, sets = kernel_computes(queries, patches.rows), kept.shape[1]
    if kernel:
        pays_below = KERNEL_PAYS_BELOW if sets == 1 else KERNEL_PAYS_BELOW_BY_HEAD
    else:
        pays_below = GATHERING_PAYS_BELOW / sets
        if kept.shape[-1] < GATHERING_PAYS_FROM:
            return attend_dense
    if kept.count_nonzero().item() >= pays_below * kept.numel():
        return attend_dense
    return attend_kernel if kernel else attend_gathered
