"""A training that starts from weights has to beat them, and its curves are written."""

from __future__ import annotations

import csv

import matplotlib.image
import pytest
import torch
from boltzformer.training.curves import COLUMNS, Curves
from boltzformer.training.first_validation import FirstValidation
from ignite.engine import Events


def _with_both(make_run, folder, enabled=True, **options):
    """A run with the first validation and curves, as train.json has them, and how often it validates."""
    run = make_run(folder, **options)
    curves = Curves(folder, run.validator)
    run.train_handlers[0].states["curves"] = curves
    FirstValidation(run.validator, enabled).attach(run.trainer)
    curves.attach(run.trainer)
    epochs: list[int] = []
    run.validator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: epochs.append(engine.state.epoch))
    return run, curves, epochs


def test_weights_that_no_epoch_beats_stay(make_run, tmp_path, caplog):
    run, _, epochs = _with_both(make_run, tmp_path, learning_rate=0.0, max_epochs=3)
    start = {key: value.clone() for key, value in run.network.state_dict().items()}
    with caplog.at_level("INFO"):
        run.trainer.run()
    assert epochs == [0, 1, 2, 3]  # and the first only once
    assert run.validator.state.best_metric_epoch == 0
    assert "epoch 0: best val_dice so far" in caplog.text
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(saved[key], value) for key, value in start.items())


def test_an_epoch_that_is_better_takes_its_place(make_run, tmp_path):
    run, _, _ = _with_both(make_run, tmp_path, learning_rate=0.05, max_epochs=4)
    run.trainer.run()
    assert run.validator.state.best_metric_epoch > 0


def test_a_random_start_is_not_validated(make_run, tmp_path):
    run, curves, epochs = _with_both(make_run, tmp_path, enabled=False, max_epochs=2)
    run.trainer.run()
    assert epochs == [1, 2]
    assert [row[0] for row in curves.rows] == [1, 2]


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [3, 9])
def test_curves_of_a_resumed_run_are_the_whole_runs(make_run, tmp_path, after):
    whole, curves, _ = _with_both(make_run, tmp_path / "whole", max_epochs=3)
    whole.trainer.run()

    cut, _, _ = _with_both(make_run, tmp_path / "cut", max_epochs=3, every_minutes=1e-9)

    def kill(engine):
        raise Killed

    cut.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=after), kill)
    with pytest.raises(Killed):
        cut.trainer.run()
    again, _, epochs = _with_both(make_run, tmp_path / "cut", max_epochs=3, every_minutes=1e-9, resume=True)
    again.trainer.run()
    assert 0 not in epochs
    texts = [(tmp_path / name / "curves.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    rows = list(csv.DictReader(texts[0].splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["loss"] == ""
    assert all(float(row["val_dice"]) >= 0 and float(row["val_loss"]) > 0 for row in rows)
    assert float(rows[1]["loss"]) == pytest.approx(curves.rows[1][1], rel=1e-5)
    assert float(rows[3]["learning_rate"]) < float(rows[1]["learning_rate"])
    assert matplotlib.image.imread(tmp_path / "cut" / "curves.png").ndim == 3


def test_the_mean_loss_is_that_of_the_epochs_steps(make_run, tmp_path):
    run, curves, _ = _with_both(make_run, tmp_path, max_epochs=2)
    losses: list[float] = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output[0]["loss"]))
    )
    run.trainer.run()
    assert [row[1] for row in curves.rows[1:]] == pytest.approx([sum(losses[:6]) / 6, sum(losses[6:]) / 6])
