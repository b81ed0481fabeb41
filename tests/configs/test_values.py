"""Values that decide results, as literal numbers: a slip in a config changes no shape and raises no error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import BUNDLE


def _config(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _handlers(config: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    listed = [entry for entry in config[part]["handlers"] if isinstance(entry, dict)]
    return {entry["_target_"].rsplit(".", 1)[-1]: entry for entry in listed}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_decay", 0.01),
        ("patience", 5),
        ("warmup_share", 0.02),
        ("max_gradient_norm", 1.0),
        ("checkpoint_every_minutes", 5.0),
        ("val_interval", 1),
        ("resume", False),
        ("validation_share", 0.2),
        ("seed", 0),
    ],
)
def test_numbers_of_training(key, value):
    assert _config("train")[key] == value


def test_loss_optimizer_schedule_and_augmentation():
    train = _config("train")
    found = json.dumps(train)
    assert '"_target_": "DiceCELoss", "sigmoid": true, "squared_pred": true' in found
    assert train["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert train["optimizer"]["weight_decay"] == "@weight_decay"
    handlers = _handlers(train, "train")
    assert handlers["LrScheduleHandler"]["epoch_level"] is False  # a step each, not an epoch
    assert handlers["ClipGradients"]["max_norm"] == "@max_gradient_norm"
    steps = {step["_target_"].rsplit(".", 1)[-1]: step for step in train["train"]["preprocessing"]["transforms"]}
    affine = steps["RandSliceAffined"]
    assert (affine["prob"], affine["shift"], affine["scale"], affine["angle"]) == (0.9, 0.1, 0.2, 12)
    # mirroring or quarter turns would teach the network that left is right
    assert affine["turn"] is False
    assert not any("Flip" in name or "Rotate90" in name for name in steps)


def test_early_stopping_and_best_weights_are_attached_and_looked_at_in_this_order():
    train = _config("train")
    assert train["early_stopping"] == {
        "_target_": "boltzformer.training.early_stopping.EarlyStoppingOnValidation",
        "validator": "@validate#evaluator",
        "patience": "@patience",
    }
    run = [step for step in train["run"] if isinstance(step, str)]
    attach = next(k for k, step in enumerate(run) if "early_stopping.attach" in step)
    assert attach < next(k for k, step in enumerate(run) if step.rstrip().endswith(".run()"))
    assert "@best_weights" in train["validate"]["handlers"]


def test_inference_keeps_orientation_threshold_and_seed():
    inference = _config("inference")
    assert (inference["orientation"], inference["seed"], inference["uneven_spacing"]) == ("RAS", 0, "refuse")
    steps = inference["postprocessing"]["transforms"]
    assert [step["_target_"].rsplit(".", 1)[-1] for step in steps[1:]] == ["MasksFromLogitsd", "Invertd"]
    assert steps[2]["keys"] == ["pred", "masks", "logits"]
    assert steps[2]["nearest_interp"] is True  # masks stay 0 and 1, whatever a preprocessing of one's own did


def test_several_decodings_change_nothing_else_of_the_inferer():
    """An overlay that replaced the whole inferer would let what it forgets fall to a default without a word."""
    several = {key: value for key, value in _config("uncertainty").items() if key.startswith("inferer")}
    assert set(several) == {"inferer#_target_", "inferer#decodings", "inferer#seed"}
