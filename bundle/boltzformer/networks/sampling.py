"""Which patches a query attends to: the annealed Boltzmann distribution over patches, and draws from it.

Equation numbers are those of "Boltzmann Attention Sampling for Image Analysis with Small Objects", CVPR 2025.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AttentionRule = Literal["boltzmann", "threshold", "full"]


def temperature(base_temperature: float, layer: int) -> float:
    """Annealed temperature of a layer, tau_l = tau_0 / (1 + l), layers counted from 0."""
    return base_temperature / (1 + layer)


def boltzmann_probability(confidence: Tensor, tau: float) -> Tensor:
    """Boltzmann distribution over patches (eq. 5): p_i = exp(U_i / tau) / sum_j exp(U_j / tau).

    Args:
        confidence: U in [0, 1], shape (..., patches).
        tau: temperature, > 0.

    Returns:
        Probabilities of shape (..., patches), float32, summing to 1 over the last axis.
    """
    return torch.softmax(confidence.float() / tau, dim=-1)


def log_never_drawn(probability: Tensor, trials: int) -> Tensor:
    """Logarithm of the chance that N draws with replacement all miss a patch: N log(1 - p).

    The patch is kept with the complement, 1 - (1 - p)^N = -expm1 of this. Computed as such that would lose the small p
    of a large grid, since 1 - p is 1 in float32; log1p does not.
    """
    return probability.neg().log1p_().mul_(trials)


def number_of_trials(sample_ratio: float, patches: int) -> int:
    """N of the paper: the share ``sample_ratio`` of the grid's patches, at least one."""
    return max(1, int(sample_ratio * patches))


def draw_attention_set(logits: Tensor, noise: Tensor, tau: float, sample_ratio: float) -> Tensor:
    """Draw each query's attention set: every patch is kept on its own with its keep probability, 1 - (1 - p)^N.

    Args:
        logits: mask logits at the patch grid, shape (..., patches); their sigmoid is the confidence U.
        noise: standard exponential variates, broadcastable to the logits' shape; -log(u) of a uniform u serves.
        tau: temperature of the layer.
        sample_ratio: N over the number of patches.

    Returns:
        Boolean tensor, True where the patch is in the set; no set is empty (see :func:`fill_empty`).
    """
    probability = boltzmann_probability(logits.float().sigmoid(), tau)
    trials = number_of_trials(sample_ratio, logits.shape[-1])
    # P(E <= -N log(1 - p)) = 1 - (1 - p)^N for exponential E: exact for tiny p, and one logarithm a patch
    return fill_empty(noise <= log_never_drawn(probability, trials).neg_())


def threshold_attention_set(logits: Tensor, threshold: float) -> Tensor:
    """Attention set of the paper's table 3 without sampling: the patches with confidence >= ``threshold``."""
    return fill_empty(logits.float().sigmoid() >= threshold)


def fill_empty(kept: Tensor) -> Tensor:
    """Let a query whose set is empty attend to every patch."""
    return kept | ~kept.any(dim=-1, keepdim=True)


def attention_set(
    logits: Tensor,
    noise: Tensor | None,
    tau: float,
    rule: AttentionRule,
    sample_ratio: float,
    threshold: float,
) -> Tensor | None:
    """Attention set under one of the rules of the paper's table 3.

    Returns:
        Boolean tensor of the logits' shape broadcast with the noise's, or None for "full" (every patch).
    """
    if rule == "full":
        return None
    if rule == "threshold":
        return threshold_attention_set(logits, threshold)
    if noise is None:
        raise ValueError("the boltzmann rule needs noise")
    return draw_attention_set(logits, noise, tau, sample_ratio)
