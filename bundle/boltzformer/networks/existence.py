"""Whether the object is in the slice at all: a score beside the mask (not in the paper).

It reads what the decoder leaves and sends no gradient back, so that learning it cannot disturb the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.patches import Patches
from .attention.projections import Projections
from .transformer import FeedForward

AREAS = (4, 16, 64)  # numbers of most confident pixels whose mean logit the head is told


class ExistenceHead(nn.Module):
    """One classifier query over query embeddings, text and coarse patches, with the mask's highest logits.

    The query starts from what the prompt says and what the decoder's queries found, so that it looks for this object:
    a slice of the neck holds a spinal cord and no brainstem, and only the surroundings tell.

    Args:
        dim: d.
        num_heads: heads of its attention.
        num_layers: rounds of attention.
        hidden: width of its feed-forward and last layers.
    """

    def __init__(self, dim: int, num_heads: int, num_layers: int = 3, hidden: int = 256) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.kind = nn.Parameter(torch.randn(4, dim) * 0.02)  # of a token: query, text, stride 32, stride 16
        self.norm = nn.LayerNorm(dim)
        self.start = nn.Linear(2 * dim, dim)
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(dim, num_heads, batch_first=True) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_layers))
        self.feedforwards = nn.ModuleList(FeedForward(dim, hidden) for _ in range(num_layers))
        self.classify = nn.Sequential(nn.Linear(dim + len(AREAS) + 1, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(
        self,
        queries: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        scales: Sequence[Patches],
        mask_logits: Tensor,
    ) -> Tensor:
        """Score B prompts on S slices.

        Args:
            queries: after the last layer, (B, m, d).
            text: tokens, (B, N_T, d).
            text_mask: True at real tokens, (B, N_T); None if there is no padding.
            scales: V at strides 32 and 16, S slices, B / S prompts for each.
            mask_logits: of the mask, (B, 1, h, w).

        Returns:
            Logits, (B,), float32.
        """
        batch = queries.shape[0]
        queries, text = queries.detach(), text.detach()
        asked = text.mean(1, keepdim=True) if text_mask is None else _masked_mean(text, text_mask)
        parts = [queries, text]
        parts += [scale.rows.detach().repeat_interleave(batch // scale.rows.shape[0], 0) for scale in scales]
        tokens = torch.cat([part + kind for part, kind in zip(parts, self.kind, strict=True)], 1)
        ignored = None
        if text_mask is not None:
            ignored = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            ignored[:, queries.shape[1] : queries.shape[1] + text.shape[1]] = ~text_mask
        tokens = self.norm(tokens)
        query = self.query + self.start(torch.cat((asked, queries.mean(1, keepdim=True)), 2))
        for module, norm, feedforward in zip(self.attentions, self.norms, self.feedforwards, strict=True):
            found = attend_once(cast(nn.MultiheadAttention, module), query, tokens, ignored)
            query = feedforward(norm(query + found))
        summary = self._mask_summary(mask_logits.detach().float())
        found = query[:, 0]
        return self.classify(torch.cat((found, summary.to(found.dtype)), 1))[:, 0].float()

    @staticmethod
    def _mask_summary(logits: Tensor) -> Tensor:
        """Mean of the highest logits for some numbers of pixels, and the mask's area on a log scale: (B, 4)."""
        flat = logits.flatten(1)
        highest = flat.topk(min(AREAS[-1], flat.shape[1]), dim=1).values
        means = [highest[:, :count].mean(1) for count in AREAS]
        area = torch.log1p(F.sigmoid(flat).sum(1))
        return torch.stack((*means, area), 1) / 4  # of the order of one


def attend_once(module: nn.MultiheadAttention, query: Tensor, tokens: Tensor, ignored: Tensor | None) -> Tensor:
    """One query's attention to tokens, none of which is projected (`attention.projections`).

    Keys and values of 340 tokens are most of the work for a single query: the key projection moves to the query, and
    the value projection to the weighted sum.

    Args:
        module: whose function this is.
        query: (B, 1, d).
        tokens: keys and values, (B, n, d).
        ignored: True at padding, (B, n), or None.

    Returns:
        (B, 1, d), equal to the module's result up to rounding.
    """
    weights = Projections.of(module)
    _, folded = weights.fold(query)  # (B, H, 1, d); b_k cancels in the softmax
    scores = folded.flatten(1, 2) @ tokens.transpose(1, 2)
    if ignored is not None:
        scores = scores.masked_fill(ignored[:, None], float("-inf"))
    sums = scores.softmax(-1).to(tokens.dtype) @ tokens
    return module.out_proj(weights.project_sums(sums[:, :, None]).transpose(1, 2).flatten(2))


def _masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens, (B, 1, d)."""
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
