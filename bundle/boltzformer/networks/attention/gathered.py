"""Attention that reads only the patches in each set, forward and backward.

For one set of patches A, query q (already carrying W_k), patches x_i and position scores b_i::

    w = softmax_{i in A}(q . x_i + b_i)          sum = sum_{i in A} w_i x_i

A row of `rows` is one patch. Every step works on a set's gathered rows; the backward pass adds a set's gradient back
row by row into one buffer, so nothing of the size (queries x patches) or (layers x patches) is ever made.

Where no gradient is asked for, `kernel` computes the same without gathering, if numba is installed.

Shapes by example: 2 slices of a 4x4 grid with 3 prompts each (B = 6), m = 10 queries, H = 8 heads that share a set,
d = 64. `queries` is (6, 10, 8, 64): 10 sets a prompt, each read by its G = 8 heads; with a set of its own for each
head it is (6, 80, 1, 64). Prompt 4 reads `rows[1]`, (16, 64). If its first set holds patches 2, 5 and 7, `gathered`
is (3, 64), `weight` (8, 3), the sum `weight @ gathered` (8, 64). Backward, with G = d(loss)/d(sum) (8, 64):

    d weight = G gathered^T                                   (8, 3)
    d score  = weight * (d weight - sum_i weight_i d weight_i)    the softmax's
    d query  = d score gathered                               (8, 64)
    d x_i    = weight_i^T G + d score_i^T query               (3, 64), one product of the two side by side
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from boltzformer.errors import InputError

from .patches import Patches
from .projections import FoldedQueries, Projections


@dataclass
class Sets:
    """Attention sets of one slice as lists of patches.

    Attributes:
        patch: patch index of every (set, patch) pair, sorted by set, (pairs,).
        row: index of that patch's grid row in a (sets * height) table.
        column: index of its grid column in a (sets * width) table.
        sizes: number of patches of each set.
    """

    patch: Tensor
    row: Tensor
    column: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, kept: Tensor, height: int, width: int) -> Sets:
        """From a boolean tensor (sets, height * width)."""
        which, patch = kept.nonzero(as_tuple=True)
        y = torch.div(patch, width, rounding_mode="floor")
        return cls(patch, which * height + y, which * width + (patch - y * width), kept.sum(1).tolist())


def attend_gathered(
    weights: Projections, queries: Tensor, patches: Patches, level: Tensor, kept: Tensor | None
) -> tuple[Tensor, Patches]:
    """Attend to the kept patches with PyTorch's operations; arguments and result as in `plain.attend_plain`."""
    return _attend_sets(gathered_attention, weights, queries, patches, level, kept)


def attend_kernel(
    weights: Projections, queries: Tensor, patches: Patches, level: Tensor, kept: Tensor | None
) -> tuple[Tensor, Patches]:
    """The same by numba's kernel, without gradients and on the CPU alone (see `kernel_computes`)."""
    kernel = _kernel()
    if kernel is None:
        raise InputError("attention's form 'kernel' needs numba: install it, or take 'auto'")
    return _attend_sets(lambda *inputs: (kernel(*inputs), inputs[3]), weights, queries, patches, level, kept)


def _attend_sets(
    attend: Callable[..., tuple[Tensor, Tensor]],
    weights: Projections,
    queries: Tensor,
    patches: Patches,
    level: Tensor,
    kept: Tensor | None,
) -> tuple[Tensor, Patches]:
    """Bring queries and sets into the form of `gathered_attention`, and its sums through W_v."""
    m, heads = queries.shape[1], weights.num_heads
    if kept is None:
        kept = queries.new_ones((1, 1, m, patches.rows.shape[1]), dtype=torch.bool)
    sets = kept.shape[1]

    def by_set(x: Tensor) -> Tensor:  # (B, H, m, ...) -> (B, sets * m, heads of a set, ...)
        return x.float().unflatten(1, (sets, heads // sets)).transpose(2, 3).flatten(1, 2)

    q = FoldedQueries.of(weights, queries, patches.size)
    with torch.autocast(queries.device.type, enabled=False):
        inputs = (by_set(q.folded), by_set(q.row_bias), by_set(q.column_bias), patches.rows.float(), kept.flatten(1, 2))
        sums, rows = attend(*inputs)
    sums = sums.unflatten(1, (sets, m)).transpose(2, 3).flatten(1, 2)
    return weights.project_sums(sums + level), Patches(rows, patches.size)


def gathered_attention(
    queries: Tensor, row_bias: Tensor, column_bias: Tensor, rows: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sums over sets, for B prompts on S slices.

    Args:
        queries: queries that carry W_k and the scale, (B, sets, G, d); the G heads of a set share its patches.
        row_bias: position score of a grid row, (B, sets, G, h).
        column_bias: position score of a grid column, (B, sets, G, w).
        rows: patches, (S, h * w, d); B / S prompts for each slice, side by side.
        kept: the sets, bool (B or 1, sets, h * w), none of them empty.

    Returns:
        Sums (B, sets, G, d), and `rows` again: hand that on to the next layer of the scale, so that the layers'
        gradients gather in one buffer on the way back.
    """
    return _GatheredAttention.apply(queries, row_bias, column_bias, rows, kept)


def kernel_computes(*inputs: Tensor) -> bool:
    """Whether the kernel computes for these: on the CPU, no gradient asked for, numba there."""
    backward_follows = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    return not backward_follows and all(part.device.type == "cpu" for part in inputs) and _kernel() is not None


@functools.cache
def _kernel() -> Callable[..., Tensor] | None:
    try:
        from .kernel import attend_sets
    except ImportError as error:
        logging.getLogger(__name__).warning(
            f"Attention on the CPU takes PyTorch's operations, two to four times slower than numba's ({error})."
        )
        return None
    return attend_sets


class _GatheredAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, row_bias: Tensor, column_bias: Tensor, rows: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        height, width = row_bias.shape[-1], column_bias.shape[-1]
        context = torch.empty_like(queries)
        ctx.sets, weights = [], []
        backward_follows = any(ctx.needs_input_grad)
        ctx.prompts_per_slice = queries.shape[0] // rows.shape[0]
        for b in range(queries.shape[0]):
            rows_of_slice = rows[b // ctx.prompts_per_slice]
            sets = Sets.of(kept[min(b, kept.shape[0] - 1)], height, width)
            bias = _table(row_bias[b]).index_select(0, sets.row) + _table(column_bias[b]).index_select(0, sets.column)
            bias = bias.T.contiguous()  # (G, pairs): the few rows on the left make the fast matrix product
            parts = zip(_by_set(sets), queries[b].unbind(), context[b].unbind(), strict=True)
            for (pairs, patch), query, out in parts:
                gathered = rows_of_slice.index_select(0, patch)
                weight = torch.addmm(bias[:, pairs], query, gathered.T).softmax(1)
                torch.mm(weight, gathered, out=out)
                if backward_follows:
                    bias[:, pairs] = weight  # the position scores are done with; their memory keeps the weights
            ctx.sets.append(sets)
            weights.append(bias)
        ctx.save_for_backward(queries, rows, *weights)
        ctx.size = (height, width)
        return context, rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_context: Tensor | None, grad_rows: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_context is None:  # nobody used the sums: what flows back is the later layers' share alone
            return None, None, None, grad_rows, None
        queries, rows, *weights = ctx.saved_tensors
        height, width = ctx.size
        grad_queries = torch.empty_like(queries)
        grad_row_bias = queries.new_zeros(*queries.shape[:3], height)
        grad_column_bias = queries.new_zeros(*queries.shape[:3], width)
        grad_rows = torch.zeros_like(rows) if grad_rows is None else grad_rows.clone()  # of the layers behind
        for b, sets in enumerate(ctx.sets):
            grad_score = torch.empty_like(weights[b])
            slice_ = b // ctx.prompts_per_slice
            for s, (pairs, patch) in enumerate(_by_set(sets)):
                gathered = rows[slice_].index_select(0, patch)
                weight, upstream = weights[b][:, pairs], grad_context[b, s]
                grad_weight = upstream @ gathered.T
                score = weight * (grad_weight - (weight * grad_weight).sum(1, keepdim=True))
                torch.mm(score, gathered, out=grad_queries[b, s])
                grad_rows[slice_].index_add_(
                    0, patch, torch.cat((weight, score)).T @ torch.cat((upstream, queries[b, s]))
                )
                grad_score[:, pairs] = score
            by_pair = grad_score.T.contiguous()
            grad_row_bias[b] = _untable(by_pair, sets.row, queries.shape[1], height)
            grad_column_bias[b] = _untable(by_pair, sets.column, queries.shape[1], width)
        return grad_queries, grad_row_bias, grad_column_bias, grad_rows, None


def _by_set(sets: Sets) -> list[tuple[slice, Tensor]]:
    """Each set's slice of the pairs, and its patches."""
    slices, start = [], 0
    for patch in sets.patch.split(sets.sizes):
        slices.append((slice(start, start + len(patch)), patch))
        start += len(patch)
    return slices


def _table(bias: Tensor) -> Tensor:
    """(sets, G, n) -> (sets * n, G)."""
    return bias.transpose(1, 2).flatten(0, 1)


def _untable(grad_score: Tensor, index: Tensor, sets: int, length: int) -> Tensor:
    """Sum pairs' gradients into a table and bring it back to (sets, G, n)."""
    table = grad_score.new_zeros(sets * length, grad_score.shape[1]).index_add_(0, index, grad_score)
    return table.unflatten(0, (sets, length)).transpose(1, 2)
