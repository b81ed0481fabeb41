"""Post-norm transformer sub-layers shared by the prior and the inter-query blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QueryTextAttention(nn.Module):
    """Self-attention over queries and text tokens together, residual and LayerNorm (eq. 4 and 6).

    Args:
        dim: d.
        num_heads: heads; must divide ``dim``.
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
        placed = tokens + position
        mask = None
        if ignored is not None:
            mask = torch.zeros(ignored.shape, dtype=tokens.dtype, device=tokens.device)
            mask = mask.masked_fill(ignored, float("-inf"))
        update = self.attention(placed, placed, tokens, key_padding_mask=mask, need_weights=False)[0]
        return self.norm(tokens + update)


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
