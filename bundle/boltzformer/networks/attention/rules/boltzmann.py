"""The annealed Boltzmann draw: the paper's rule. Equation numbers are the paper's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boltzformer.errors import InputError

from .rule import AttentionRule, fill_empty


@dataclass(frozen=True)
class Boltzmann(AttentionRule):
    """The paper's rule: N draws with replacement from p = softmax(U / tau_l), tau_l = tau_0 / (1 + l) (eq. 5).

    Args:
        sample_ratio: N / N_v, draws over patches of the scale, in (0, 1].
        base_temperature: tau_0 > 0.
        heads_share_set: one set a query (paper); False draws for every (query, head), as the authors' code does.

    Raises:
        InputError: a number out of its range.
    """

    needs_noise = True

    sample_ratio: float = 0.1
    base_temperature: float = 1.0
    heads_share_set: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.sample_ratio <= 1:
            raise InputError(f"sample_ratio={self.sample_ratio} must be above 0 and at most 1")
        if self.base_temperature <= 0:
            raise InputError(f"base_temperature={self.base_temperature} must be above 0")

    def keep(self, logits: Tensor, layer: int, noise: Tensor | None) -> Tensor:
        """See `AttentionRule`."""
        if noise is None:
            raise ValueError("the Boltzmann rule needs noise")
        return draw_attention_set(logits, noise, self.temperature_of(layer), self.sample_ratio)

    def temperature_of(self, layer: int) -> float:
        """tau_l of a layer, counted from 0."""
        return temperature(self.base_temperature, layer)

    def sets_per_query(self, num_heads: int) -> int:
        """See `AttentionRule`."""
        return 1 if self.heads_share_set else num_heads


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
    """N of the paper: the share `sample_ratio` of the grid's patches, at least one."""
    return max(1, int(sample_ratio * patches))


def draw_attention_set(logits: Tensor, noise: Tensor, tau: float, sample_ratio: float) -> Tensor:
    """Draw each query's attention set: every patch is kept on its own with its keep probability, 1 - (1 - p)^N.

    Args:
        logits: mask logits at the patch grid, shape (..., patches); their sigmoid is the confidence U.
        noise: standard exponential variates, broadcastable to the logits' shape; -log(u) of a uniform u serves.
        tau: temperature of the layer.
        sample_ratio: N over the number of patches.

    Returns:
        Boolean tensor, True where the patch is in the set; no set is empty (see `fill_empty`).
    """
    probability = boltzmann_probability(logits.float().sigmoid(), tau)
    trials = number_of_trials(sample_ratio, logits.shape[-1])
    # P(E <= -N log(1 - p)) = 1 - (1 - p)^N for exponential E: exact for tiny p, and one logarithm a patch
    return fill_empty(noise <= log_never_drawn(probability, trials).neg_())
