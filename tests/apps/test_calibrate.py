"""`boltzformer calibrate` and `boltzformer publish`: numbers of validation and half precision, into the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from boltzformer.apps.calibrate import calibrate, main
from boltzformer.apps.publish import main as publish
from boltzformer.errors import InputError
from boltzformer.metrics.files import write_csv
from boltzformer.recipe import read_recipe
from boltzformer.recipe_network import record_definition
from boltzformer.weights import load_weights, read_checkpoint, save_atomically

from tests.support import BUNDLE, small_network


def _rows(temperature: float, n: int = 4000) -> list[dict]:
    """Slices whose true probability is sigmoid(logit), scored by sigmoid(logit * temperature)."""
    draw = np.random.default_rng(0)
    logit = draw.normal(0, 3, n)
    present = draw.random(n) < 1 / (1 + np.exp(-logit))
    score = 1 / (1 + np.exp(-logit * temperature))
    return [
        {
            "dataset": "d", "case": f"c{i % 20}", "patient": f"c{i % 20}", "object": "o", "slice": i // 20,
            "dice": 0.9 if there else None, "existence": float(p),
            "label_pixels": 100 if there else 0, "predicted_pixels": 100, "overlap_pixels": 90 if there else 0,
        }
        for i, (there, p) in enumerate(zip(present, score, strict=True))
    ]  # fmt: skip


def test_the_temperature_undoes_overconfidence():
    numbers = calibrate(_rows(2.5))
    assert numbers["temperature"] == pytest.approx(2.5, rel=0.1)
    assert numbers["ece"] < 0.02 < numbers["ece_before"]
    assert 0.8 < numbers["auroc"] < 1


def test_the_threshold_serves_whole_volumes():
    numbers = calibrate(_rows(1.0))
    assert numbers["specificity_ungated"] == 0  # every slice has a mask in these rows
    assert numbers["specificity"] > 0.6
    assert numbers["volume_dice_gated"] > numbers["volume_dice_all_slices"]
    assert numbers["volume_dice_gated"] < numbers["volume_dice_positive_slices"]


def test_slices_of_one_kind_are_no_calibration():
    with pytest.raises(InputError, match="slices without"):
        calibrate([row for row in _rows(1.0) if row["label_pixels"]])


@pytest.fixture
def checkpoint(tmp_path):
    network = small_network(**{"network_def#existence": True})
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "auto", "axis": 2, "num_adjacent": 0},
    }
    save_atomically(network.state_dict(), tmp_path / "model.pt", recipe)
    return tmp_path / "model.pt"


def test_numbers_go_into_the_recipe(tmp_path, checkpoint):
    write_csv(tmp_path / "slices.csv", _rows(1.5))
    main(tmp_path, checkpoint, None)
    thresholds = read_recipe(checkpoint)["thresholds"]
    assert thresholds["existence_temperature"] == pytest.approx(1.5, rel=0.1)
    assert 0 < thresholds["existence"] < 1


def test_published_weights_are_half_as_large_and_load_again(tmp_path, checkpoint):
    publish(checkpoint, tmp_path / "small.pt")
    assert (tmp_path / "small.pt").stat().st_size < 0.62 * checkpoint.stat().st_size
    assert read_recipe(tmp_path / "small.pt")["network"] == read_recipe(checkpoint)["network"]
    for name, value in read_checkpoint(tmp_path / "small.pt").items():
        assert value.dtype == (torch.float16 if value.dim() > 1 and value.is_floating_point() else value.dtype)
        assert torch.allclose(value.float(), read_checkpoint(checkpoint)[name].float(), rtol=1e-3, atol=1e-6)
    again = small_network(seed=3, **{"network_def#existence": True})
    load_weights(again, tmp_path / "small.pt")
    assert next(again.parameters()).dtype == torch.float32


def test_a_new_part_may_be_absent_and_nothing_else(tmp_path):
    plain = small_network()
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    scoring = small_network(seed=2, **{"network_def#existence": True})
    head = {name: value.clone() for name, value in scoring.existence.state_dict().items()}
    with pytest.raises(InputError, match="existence"):
        load_weights(scoring, tmp_path / "plain.pt")
    load_weights(scoring, tmp_path / "plain.pt", new_part="existence")
    assert all(torch.equal(value, head[name]) for name, value in scoring.existence.state_dict().items())
    assert torch.equal(scoring.mask_features.weight, plain.mask_features.weight)
