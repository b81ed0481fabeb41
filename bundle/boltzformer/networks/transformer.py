"""Post-norm transformer sub-layers shared by the prior and the inter-query blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QueryTextAttention(nn.Module):
    """Self-attention over queries and text tokens together, residual and LayerNorm (eq. 4 and 6).

    It is `nn.MultiheadAttention`, called without its checks, which take longer than the few tokens do.

    Args:
        dim: d.
        num_heads: heads; must divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor, ignored: Tensor | None) -> Tensor:
        """Attend among tokens.

        Args:
            tokens: queries and text, (B, m + N_T, d).
            position: added to queries and keys, not to values, (B, m + N_T, d).
            ignored: True at padding, which no token attends to, (B, m + N_T), or None.
        """
        dim, module = tokens.shape[-1], self.attention
        weight, bias = module.in_proj_weight, module.in_proj_bias
        both = F.linear(tokens + position, weight[: 2 * dim], bias[: 2 * dim])
        value = F.linear(tokens, weight[2 * dim :], bias[2 * dim :])
        parts = (*both.chunk(2, -1), value)
        query, key, value = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in parts)
        allowed = None if ignored is None else ~ignored[:, None, None]
        update = _attend(query, key, value, allowed)
        update = module.out_proj(update.transpose(1, 2).flatten(2))
        return self.norm(tokens + update)

    def mix(self, queries: Tensor, text: Tensor, position: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
        """[Q, T] + SelfAttn[Q, T], normalised and split again: (B, m, d) and (B, N_T, d)."""
        tokens = self(torch.cat((queries, text), 1), position, ignored)
        return tokens[:, : queries.shape[1]], tokens[:, queries.shape[1] :]


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
    """Scaled dot-product attention, (B, H, n, d / H).

    On a CPU it is written out: for these few tokens the fused kernel takes twice as long as three products do, and its
    backward pass ten times as long.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return _softmax(scores).to(value.dtype) @ value


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis. PyTorch's own takes four times as long on rows as short as these, but has its gradient."""
    if torch.is_grad_enabled():
        return scores.softmax(-1)
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    return weights / weights.sum(-1, keepdim=True)


class FeedForward(nn.Module):
    """Two linear layers with ReLU between, residual and LayerNorm.

    Args:
        dim: d.
        hidden: width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, m, d) -> (B, m, d)."""
        return self.norm(tokens + self.linear2(F.relu(self.linear1(tokens))))
