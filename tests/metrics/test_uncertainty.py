"""Ensembles of decodings against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from boltzformer.metrics.uncertainty import DecodingEnsemble, binary_entropy, ensemble
from scipy.stats import entropy


def test_entropy_equals_scipy():
    p = np.linspace(0, 1, 101)
    np.testing.assert_allclose(binary_entropy(p), entropy(np.stack([p, 1 - p]), base=2), atol=1e-6)
    assert binary_entropy(np.array(0.5)) == 1
    assert binary_entropy(np.array([0.0, 1.0])).tolist() == [0, 0]


def test_ensemble_equals_numpy():
    maps = np.random.default_rng(0).random((7, 4, 5, 6)).astype(np.float32)
    collected = ensemble(iter(maps))
    assert collected.count == 7
    np.testing.assert_allclose(collected.mean, maps.mean(0), atol=1e-6)
    np.testing.assert_allclose(collected.standard_deviation, maps.std(0), atol=1e-6)
    np.testing.assert_allclose(collected.entropy, binary_entropy(maps.mean(0)), atol=1e-5)


def test_one_decoding_has_no_spread_and_bad_input_is_refused():
    collected = ensemble([np.array([0.2, 1.0])])
    assert collected.standard_deviation.tolist() == [0, 0]
    with pytest.raises(ValueError, match="one shape"):
        collected.add(np.zeros(3))
    with pytest.raises(ValueError, match="no decoding"):
        _ = DecodingEnsemble().mean
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        binary_entropy(np.array([1.5]))
