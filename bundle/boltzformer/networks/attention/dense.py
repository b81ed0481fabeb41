"""Dense attention under a mask that projects as little as it can: for sets that hold much of the grid, and for GPUs.

Two exact ways, chosen by their multiply-adds. Folded: the scores come from `FoldedQueries`, and W_v is applied
after the weighted sum, sum_i w_i (W_v x_i) = W_v (sum_i w_i x_i), so no patch is ever projected. Projected: keys and
values as usual, which is cheaper for many queries.
"""

from __future__ import annotations

from torch import Tensor

from .patches import Patches, by_prompt, by_slice
from .projections import FoldedQueries, Projections


def attend_dense(
    weights: Projections, queries: Tensor, patches: Patches, level: Tensor, kept: Tensor | None
) -> tuple[Tensor, Patches]:
    """Attend to the kept patches; arguments and result as in `plain.attend_plain`."""
    folded = FoldedQueries.of(weights, queries, patches.size)
    m, dim = queries.shape[1:]
    # a patch costs 2 m H d multiply-adds folded, and 2 d (m + d) projected
    attend = _attend_projected if m * weights.num_heads > m + dim else _attend_folded
    return attend(weights, folded, patches, level, kept), patches


def _attend_folded(
    weights: Projections, q: FoldedQueries, patches: Patches, level: Tensor, kept: Tensor | None
) -> Tensor:
    batch, heads, m = q.folded.shape[:3]
    slices = patches.rows.shape[0]
    asked = by_slice(q.folded.flatten(1, 2), slices)  # (S, K H m, d)
    scores = by_prompt(asked @ patches.columns.to(q.folded.dtype), batch).unflatten(1, (heads, m))
    share = _masked_softmax(scores, q, patches.size, kept)
    sums = by_slice(share.flatten(1, 2), slices).to(patches.rows.dtype) @ patches.rows
    return weights.project_sums(by_prompt(sums, batch).unflatten(1, (heads, m)) + level)


def _attend_projected(
    weights: Projections, q: FoldedQueries, patches: Patches, level: Tensor, kept: Tensor | None
) -> Tensor:
    batch, heads, slices = q.heads.shape[0], weights.num_heads, patches.rows.shape[0]
    w_v, b_v = weights.values_by_head()
    keys = (weights.w_k @ patches.columns.to(weights.w_k.dtype)).unflatten(1, (heads, -1))  # (S, H, d / H, patches)
    values = (weights.w_v @ patches.columns.to(weights.w_v.dtype)).unflatten(1, (heads, -1))
    scores = _by_head(q.heads, slices) @ keys  # (S, H, K m, patches)
    share = _masked_softmax(_by_prompt_and_head(scores, batch), q, patches.size, kept)
    sums = _by_head(share.to(values.dtype), slices) @ values.transpose(-1, -2)
    return _by_prompt_and_head(sums, batch) + ((w_v @ level)[:, None] + b_v)


def _by_head(x: Tensor, slices: int) -> Tensor:
    """(B, H, m, n) -> (S, H, K m, n)."""
    return x.unflatten(0, (slices, -1)).transpose(1, 2).flatten(2, 3)


def _by_prompt_and_head(x: Tensor, batch: int) -> Tensor:
    """(S, H, K m, n) -> (B, H, m, n)."""
    return x.unflatten(2, (batch // x.shape[0], -1)).transpose(1, 2).flatten(0, 1)


def _masked_softmax(scores: Tensor, q: FoldedQueries, size: tuple[int, int], kept: Tensor | None) -> Tensor:
    """Add the position's score, drop what is not in the set, normalise in float32: (B, H, m, h * w)."""
    grid = scores.float().unflatten(-1, size)
    grid = grid + q.row_bias[..., None].float() + q.column_bias[..., None, :].float()
    scores = grid.flatten(-2)
    if kept is not None:
        scores = scores.masked_fill(~kept, float("-inf"))
    return scores.softmax(-1)
