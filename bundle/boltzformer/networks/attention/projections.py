"""A layer's projections, and queries that carry the key projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import axis_embeddings


@dataclass(frozen=True)
class Projections:
    """Weights of a layer's `nn.MultiheadAttention`: W (d, d) and b (d,) of queries, keys and values, and H."""

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    b_q: Tensor
    b_k: Tensor
    b_v: Tensor
    num_heads: int

    @classmethod
    def of(cls, module: nn.MultiheadAttention) -> Projections:
        """The weights of a module, which keeps the three side by side."""
        w_q, w_k, w_v = module.in_proj_weight.chunk(3)
        b_q, b_k, b_v = module.in_proj_bias.chunk(3)
        return cls(w_q, w_k, w_v, b_q, b_k, b_v, module.num_heads)

    def keys_by_head(self) -> Tensor:
        """W_k as (H, d / H, d)."""
        return self.w_k.unflatten(0, (self.num_heads, -1))

    def values_by_head(self) -> tuple[Tensor, Tensor]:
        """W_v as (H, d / H, d) and b_v as (H, 1, d / H)."""
        heads = (self.num_heads, -1)
        return self.w_v.unflatten(0, heads), self.b_v.unflatten(0, heads)[:, None]

    def fold(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, m, d) by head and scaled, (B, H, m, d / H), and with W_k folded into them, (B, H, m, d)."""
        heads = F.linear(queries, self.w_q, self.b_q).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        heads = heads / heads.shape[-1] ** 0.5
        return heads, _by_head(heads, self.keys_by_head())

    def project_sums(self, sums: Tensor) -> Tensor:
        """Apply W_v and its bias to weighted sums of patches: (B, H, m, d) -> (B, H, m, d / H)."""
        w_v, b_v = self.values_by_head()
        return _by_head(sums.to(w_v.dtype), w_v.transpose(1, 2)) + b_v


def _by_head(x: Tensor, weights: Tensor) -> Tensor:
    """Matrix products by head, (B, H, m, n) @ (H, n, k) -> (B, H, m, k), with a query's heads side by side in memory.

    `@` would copy the weights for each of the B examples; here a head is one product for all of them.
    """
    batch, heads, count, _ = x.shape
    made = torch.bmm(x.transpose(0, 1).flatten(1, 2), weights)  # (H, B m, k)
    return made.transpose(0, 1).contiguous().view(batch, count, heads, -1).transpose(1, 2)


@dataclass(frozen=True)
class FoldedQueries:
    """Queries after their projection, ready to meet patches that are not projected.

    q . (W_k x + b_k) = (W_k^T q) . x + q . b_k: the key projection moves to the few queries. What is the same for all
    of a query's keys, b_k and the level embedding, cancels in the softmax. The position embedding of patch (y, x) is
    `cat(rows[y], columns[x])`, so its score is the sum of a term for y and one for x.

    Attributes:
        heads: W_q q / sqrt(d / H), (B, H, m, d / H).
        folded: W_k^T of that, (B, H, m, d); its product with V is the score, but for the position.
        row_bias: score of the position's rows, (B, H, m, h).
        column_bias: score of its columns, (B, H, m, w).
    """

    heads: Tensor
    folded: Tensor
    row_bias: Tensor
    column_bias: Tensor

    @classmethod
    def of(cls, weights: Projections, queries: Tensor, size: tuple[int, int]) -> FoldedQueries:
        """Fold queries (B, m, d) for a patch grid of `size`."""
        heads, folded = weights.fold(queries)
        rows, columns = axis_embeddings(*size, queries.shape[-1], queries.device)
        half = queries.shape[-1] // 2
        by_query = folded.transpose(1, 2)  # as it lies in memory: the products below copy nothing
        row_bias = by_query[..., :half] @ rows.T.to(folded.dtype)
        column_bias = by_query[..., half:] @ columns.T.to(folded.dtype)
        return cls(heads, folded, row_bias.transpose(1, 2), column_bias.transpose(1, 2))
