"""Boltzmann attention: cross-attention of each query over its own sampled set of patches.

The layer's function is that of ``nn.MultiheadAttention`` with a boolean mask, keys ``V + level + position`` and values
``V + level``. It is computed without ever projecting what no query needs; each shortcut is one function here, and
``tests/networks/reference.py`` holds the plain form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gathered_attention import gathered_attention, uses_kernel
from .positions import axis_embeddings


class PatchFeatures:
    """Visual features V of one scale, for B slices, as the attention reads them.

    Args:
        maps: V, shape (B, d, h, w).
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self.size = (int(maps.shape[-2]), int(maps.shape[-1]))
        self.columns = maps.flatten(2)
        self._rows: Tensor | None = None
        self._source: PatchFeatures | None = None

    @property
    def rows(self) -> Tensor:
        """V with one patch a row, contiguous, shape (B, h * w, d); made when first asked for.

        A layer that reads it puts back what :func:`gathered_attention` returns, for the sake of the backward pass.
        """
        if self._rows is None and self._source is not None:
            self._rows = self._source.rows.expand(self.maps.shape[0], -1, -1)
        elif self._rows is None:
            rows = self.columns.transpose(1, 2)
            if not rows.is_contiguous():
                # one by one: torch copies a transposed matrix in blocks, but not a batch of them
                parts = [columns.T.contiguous() for columns in self.columns]
                rows = torch.stack(parts) if len(parts) > 1 else parts[0][None]
            self._rows = rows
        return self._rows

    @rows.setter
    def rows(self, rows: Tensor) -> None:
        self._rows = rows

    def __getitem__(self, index: slice) -> PatchFeatures:
        part = PatchFeatures(self.maps[index])
        part._rows = None if self._rows is None else self._rows[index]
        part._source = self._source
        return part

    def expand(self, count: int) -> PatchFeatures:
        """One slice for ``count`` prompts; nothing is copied, and the rows are made once for all of them."""
        many = PatchFeatures(self.maps.expand(count, -1, -1, -1))
        many._source = self
        return many


@dataclass
class FoldedQueries:
    """Queries after the query projection, ready to meet unprojected patches.

    Attributes:
        heads: W_q q / sqrt(d_h), shape (B, H, m, d_h).
        folded: W_k^T of that, shape (B, H, m, d); its product with V is the score, up to position and constants.
        row_bias: score of the position embedding's rows, shape (B, H, m, h).
        column_bias: score of its columns, shape (B, H, m, w).
    """

    heads: Tensor
    folded: Tensor
    row_bias: Tensor
    column_bias: Tensor


class BoltzmannAttention(nn.Module):
    """Cross-attention of queries over their attention sets, residual and LayerNorm (post-norm).

    Args:
        dim: d, width of queries and patches.
        num_heads: H; must divide ``dim``.
        gather_density: on the CPU, only the sets' patches are read when the sets hold less than this share of all
            (query, patch) pairs; above it one dense product over all patches is faster. None takes the measured
            break-even of the way that the sets would be read.
    """

    def __init__(self, dim: int = 256, num_heads: int = 8, gather_density: float | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.gather_density = gather_density
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        patches: PatchFeatures,
        level: Tensor,
        kept: Tensor | None,
    ) -> Tensor:
        """Attend and update.

        Args:
            queries: (B, m, d).
            query_position: learned position of the queries, (m, d).
            patches: V of this layer's scale, B slices.
            level: learned embedding of the scale, (d,), part of every key and value.
            kept: attention sets, bool (B, 1, m, h * w) shared by the heads or (B, H, m, h * w); None for all patches.

        Returns:
            Updated queries, (B, m, d).
        """
        folded = self._fold(queries + query_position, patches.size)
        if self._gather_pays(folded, kept):
            assert kept is not None
            attended = self._attend_gathered(folded, patches, level, kept)
        elif queries.shape[1] * self.num_heads > queries.shape[1] + queries.shape[2]:
            attended = self._attend_projected(folded, patches, level, kept)
        else:
            attended = self._attend_folded(folded, patches, level, kept)
        out = self.attention.out_proj(attended.transpose(1, 2).flatten(2))
        return self.norm(queries + out)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """W_q (d, d), b_q (d,), W_k and W_v as (H, d_h, d), b_v as (H, 1, d_h). The key bias cancels in the softmax."""
        w_q, w_k, w_v = self.attention.in_proj_weight.chunk(3)
        b_q, _, b_v = self.attention.in_proj_bias.chunk(3)
        heads = (self.num_heads, -1)
        return w_q, b_q, w_k.unflatten(0, heads), w_v.unflatten(0, heads), b_v.unflatten(0, heads)[:, None]

    def _fold(self, queries: Tensor, size: tuple[int, int]) -> FoldedQueries:
        """Project the queries and fold the key projection into them: q . (W_k x) = (W_k^T q) . x.

        The level embedding is the same for all keys, hence cancels in the softmax. The position embedding is
        ``cat(rows[y], columns[x])``, so its score is a sum of one term for y and one for x.
        """
        w_q, b_q, w_k, _, _ = self._weights()
        heads = F.linear(queries, w_q, b_q).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        heads = heads / heads.shape[-1] ** 0.5
        folded = heads @ w_k
        rows, columns = axis_embeddings(*size, queries.shape[-1], queries.device)
        half = queries.shape[-1] // 2
        return FoldedQueries(
            heads,
            folded,
            folded[..., :half] @ rows.T.to(folded.dtype),
            folded[..., half:] @ columns.T.to(folded.dtype),
        )

    def _gather_pays(self, q: FoldedQueries, kept: Tensor | None) -> bool:
        """Whether to gather: decided by the sets' measured density, only where reading it costs no synchronisation."""
        if kept is None or kept.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        density = self.gather_density
        if density is None:
            density = _break_even(kept.shape[1], uses_kernel(q.folded))
        return kept.count_nonzero().item() < density * kept.numel()

    def _attend_folded(self, q: FoldedQueries, patches: PatchFeatures, level: Tensor, kept: Tensor | None) -> Tensor:
        """Dense attention without projected keys or values: sum_i w_i (W_v x_i) = W_v (sum_i w_i x_i)."""
        heads, m = q.folded.shape[1:3]
        scores = (q.folded.flatten(1, 2) @ patches.columns.to(q.folded.dtype)).unflatten(1, (heads, m))
        weights = _masked_softmax(scores, q, patches.size, kept)
        context = (weights.flatten(1, 2).to(patches.columns.dtype) @ patches.columns.transpose(1, 2)).unflatten(
            1, (heads, m)
        )
        return self._project_values(context + level)

    def _attend_projected(self, q: FoldedQueries, patches: PatchFeatures, level: Tensor, kept: Tensor | None) -> Tensor:
        """Dense attention with projected keys and values: cheaper than folding when m H > m + d."""
        _, _, w_k, w_v, b_v = self._weights()
        heads = (self.num_heads, -1)
        keys = (w_k.flatten(0, 1) @ patches.columns.to(w_k.dtype)).unflatten(1, heads)
        values = (w_v.flatten(0, 1) @ patches.columns.to(w_v.dtype)).unflatten(1, heads)
        weights = _masked_softmax(q.heads @ keys, q, patches.size, kept)
        return weights.to(values.dtype) @ values.transpose(-1, -2) + ((w_v @ level)[:, None] + b_v)

    def _attend_gathered(self, q: FoldedQueries, patches: PatchFeatures, level: Tensor, kept: Tensor) -> Tensor:
        """Sparse attention: each set's patches are gathered and nothing else is read, see ``gathered_attention``."""
        heads, m = q.folded.shape[1:3]
        sets = kept.shape[1]

        def by_set(x: Tensor) -> Tensor:  # (B, H, m, ...) -> (B, sets * m, heads of a set, ...)
            return x.float().unflatten(1, (sets, heads // sets)).transpose(2, 3).flatten(1, 2)

        with torch.autocast(q.folded.device.type, enabled=False):
            context, patches.rows = gathered_attention(
                by_set(q.folded), by_set(q.row_bias), by_set(q.column_bias), patches.rows.float(), kept.flatten(1, 2)
            )
        context = context.unflatten(1, (sets, m)).transpose(2, 3).flatten(1, 2)
        return self._project_values(context + level)

    def _project_values(self, context: Tensor) -> Tensor:
        """Apply W_v and its bias to the weighted sums: (B, H, m, d) -> (B, H, m, d_h)."""
        _, _, _, w_v, b_v = self._weights()
        return context.to(w_v.dtype) @ w_v.transpose(1, 2) + b_v


def _break_even(sets_per_query: int, kernel: bool) -> float:
    """Density at which reading the sets alone takes as long as reading everything, measured with 8 heads.

    A set of its own for each head has every row read for one head instead of all.
    """
    if kernel:
        return 0.75 if sets_per_query == 1 else 0.25
    return 0.15 / sets_per_query


def _masked_softmax(scores: Tensor, q: FoldedQueries, size: tuple[int, int], kept: Tensor | None) -> Tensor:
    """Add the position's score, drop what is not in the set, normalise in float32: (B, H, m, h * w)."""
    grid = scores.float().unflatten(-1, size)
    grid = grid + q.row_bias[..., None].float() + q.column_bias[..., None, :].float()
    scores = grid.flatten(-2)
    if kept is not None:
        scores = scores.masked_fill(~kept, float("-inf"))
    return scores.softmax(-1)
