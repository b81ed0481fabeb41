"""The equations against plain forms, closed forms and frequencies."""

from __future__ import annotations

import math

import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.networks.attention.rules import Boltzmann, Full, Threshold
from boltzformer.networks.attention.rules.boltzmann import (
    boltzmann_probability,
    draw_attention_set,
    log_never_drawn,
    number_of_trials,
    temperature,
)
from boltzformer.networks.attention.rules.constant_temperature import ConstantTemperature
from boltzformer.networks.attention.rules.rule import AttentionRule, fill_empty
from boltzformer.networks.attention.rules.threshold import threshold_attention_set


def test_temperature_falls_as_one_over_layer():
    assert [temperature(1.0, layer) for layer in range(9)] == pytest.approx([1 / (1 + i) for i in range(9)])
    assert temperature(0.5, 3) == pytest.approx(0.125)


def test_probability_is_the_normalised_exponential():
    confidence = torch.tensor([0.0, 0.25, 1.0])
    energies = [math.exp(u / 0.2) for u in confidence.tolist()]
    expected = [e / sum(energies) for e in energies]
    assert boltzmann_probability(confidence, 0.2).tolist() == pytest.approx(expected, rel=1e-5)
    assert boltzmann_probability(confidence.bfloat16(), 0.2).dtype == torch.float32


def test_colder_is_more_concentrated():
    confidence = torch.rand(100, generator=torch.Generator().manual_seed(0))
    largest = [boltzmann_probability(confidence, temperature(1.0, layer)).max().item() for layer in range(9)]
    assert largest == sorted(largest)


@pytest.mark.parametrize("p", [1e-12, 1e-9, 1e-6, 1e-3, 0.3])
def test_keep_probability_is_exact_where_float32_rounds(p):
    trials = 1638
    exact = -math.expm1(trials * math.log1p(-p))
    assert -math.expm1(log_never_drawn(torch.tensor([p]), trials).double().item()) == pytest.approx(exact, rel=1e-5)


def test_draws_have_the_keep_probability():
    """Frequency of each patch over many draws against 1 - (1 - p)^N, within five standard errors."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.linspace(-4, 4, 50)
    draws = 20_000
    noise = torch.empty(draws, 50).exponential_(generator=generator)
    kept = draw_attention_set(logits.expand(draws, -1), noise, tau=0.25, sample_ratio=0.2)
    expected = -log_never_drawn(boltzmann_probability(logits.sigmoid(), 0.25), number_of_trials(0.2, 50)).expm1()
    frequency = kept.float().mean(0)
    # a set that came out empty was filled: allow for its share
    filled = (1 - expected).prod()
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((frequency - expected).abs() < 5 * error + filled).all()


def test_draws_match_trials_with_replacement():
    """The parallel form against N literal draws from the distribution: the same mean size of the union."""
    torch.manual_seed(2)
    logits = torch.randn(40) * 3
    p = boltzmann_probability(logits.sigmoid(), 0.1)
    trials, draws = 8, 4000
    literal = torch.stack([torch.zeros(40).index_fill_(0, torch.multinomial(p, trials, True), 1) for _ in range(draws)])
    noise = torch.empty(draws, 40).exponential_()
    parallel = draw_attention_set(logits.expand(draws, -1), noise, tau=0.1, sample_ratio=0.2)
    assert parallel.float().mean(0).sub(literal.mean(0)).abs().max() < 0.04


def test_trials_are_at_least_one():
    assert number_of_trials(0.1, 1024) == 102
    assert number_of_trials(0.01, 4) == 1


def test_empty_set_means_every_patch():
    kept = torch.tensor([[False, False], [True, False]])
    assert fill_empty(kept).tolist() == [[True, True], [True, False]]


def test_threshold_keeps_the_confident_and_full_keeps_all():
    logits = torch.tensor([[-1.0, 0.0, 2.0]])
    assert Full().keep(logits, 0, None) is None
    assert Full().keeps_all
    assert Threshold(0.5).keep(logits, 0, None).tolist() == [[False, True, True]]
    assert Threshold(0.99).keep(logits, 0, None).tolist() == [[True, True, True]]
    assert threshold_attention_set(logits, 0.5).tolist() == [[False, True, True]]
    assert not Threshold().needs_noise


def test_boltzmann_draws_at_the_layers_temperature():
    generator = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(2, 1, 4, 60, generator=generator), torch.rand(2, 1, 4, 60, generator=generator) * 3
    rule = Boltzmann(sample_ratio=0.2, base_temperature=0.5)
    for layer in (0, 3):
        expected = draw_attention_set(logits, noise, 0.5 / (1 + layer), 0.2)
        assert torch.equal(rule.keep(logits, layer, noise), expected)
    assert not torch.equal(rule.keep(logits, 0, noise), rule.keep(logits, 3, noise))
    assert [Boltzmann(heads_share_set=share).sets_per_query(8) for share in (True, False)] == [1, 8]
    with pytest.raises(ValueError, match="noise"):
        rule.keep(logits, 0, None)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (Boltzmann, {"sample_ratio": 0}, "sample_ratio"),
        (Boltzmann, {"sample_ratio": 1.1}, "sample_ratio"),
        (Boltzmann, {"base_temperature": 0}, "base_temperature"),
        (Threshold, {"value": -0.1}, "threshold"),
    ],
)
def test_numbers_out_of_range_are_refused(rule, settings, message):
    with pytest.raises(InputError, match=message):
        rule(**settings)


def test_a_rule_says_what_it_was_built_with_and_two_of_one_name_are_refused():
    rule = Boltzmann(0.2, heads_share_set=False)
    assert rule.definition == {
        "type": "Boltzmann",
        "sample_ratio": 0.2,
        "base_temperature": 1.0,
        "heads_share_set": False,
    }
    with pytest.raises(TypeError, match="has a Full already"):
        type("Full", (AttentionRule,), {"__module__": "elsewhere"})


def test_without_annealing_every_layer_draws_as_the_first():
    generator = torch.Generator().manual_seed(2)
    logits, noise = torch.randn(1, 1, 4, 256, generator=generator), torch.empty(1, 1, 4, 256)
    noise.exponential_(generator=generator)
    annealed, constant = Boltzmann(0.1, 0.2), ConstantTemperature(0.1, 0.2)
    first = annealed.keep(logits, 0, noise)
    assert all(torch.equal(constant.keep(logits, layer, noise), first) for layer in (0, 4, 8))
    assert not torch.equal(annealed.keep(logits, 8, noise), first)
    assert constant.definition == {**annealed.definition, "type": "ConstantTemperature"}
