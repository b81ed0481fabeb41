"""A run that was killed and taken up again equals one that was not."""

from __future__ import annotations

import random
import resource

import numpy as np
import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.training.random_state import capture_random_state, restore_random_state
from ignite.engine import Events
from torch import nn


class Killed(Exception):
    """Stands for the end of the process."""


def _kill_after(run, steps):
    def kill(engine):
        raise Killed

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=steps), kill)
    with pytest.raises(Killed):
        run.trainer.run()


def _everything(run):
    state = run.optimizer.state_dict()["state"]
    return {
        **{f"network.{key}": value for key, value in run.network.state_dict().items()},
        **{f"adam.{i}.{key}": value for i, item in state.items() for key, value in item.items()},
    }


def _assert_same(first, second):
    left, right = _everything(first), _everything(second)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
    assert first.validator.state.best_metric == second.validator.state.best_metric
    assert first.validator.state.best_metric_epoch == second.validator.state.best_metric_epoch
    assert first.trainer.state.epoch == second.trainer.state.epoch
    assert first.trainer.state.iteration == second.trainer.state.iteration
    assert first.early_stopping.state_dict() == second.early_stopping.state_dict()


@pytest.mark.parametrize(
    ("every_steps", "killed_after", "num_workers"),
    [(0, 15, 0), (4, 15, 0), (4, 9, 0), (0, 12, 0), (5, 23, 0), (4, 15, 2)],
)
def test_resumed_equals_uninterrupted(make_run, tmp_path, every_steps, killed_after, num_workers):
    whole = make_run(tmp_path / "whole", num_workers=num_workers)
    whole.trainer.run()
    after_whole = torch.rand(4)

    _kill_after(make_run(tmp_path / "cut", every_steps=every_steps, num_workers=num_workers), killed_after)
    cut = make_run(tmp_path / "cut", every_steps=every_steps, resume=True, num_workers=num_workers)
    random.seed(1234)  # whatever the new process drew before
    torch.rand(17)
    cut.trainer.run()
    after_cut = torch.rand(4)

    _assert_same(whole, cut)
    assert torch.equal(after_whole, after_cut)
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


@pytest.mark.parametrize("resume", [True, "true", "True"])
def test_resume_without_a_checkpoint_begins_anew(make_run, tmp_path, caplog, resume):
    with caplog.at_level("INFO"):
        make_run(tmp_path, resume=resume, max_epochs=1).trainer.run()
    assert "begins anew" in caplog.text
    assert (tmp_path / "last.pt").is_file()


def test_finished_run_does_nothing_more(make_run, tmp_path):
    first = make_run(tmp_path, max_epochs=2)
    first.trainer.run()
    again = make_run(tmp_path, max_epochs=2, resume=True)
    again.trainer.run()
    _assert_same(first, again)


def test_run_may_be_made_longer(make_run, tmp_path):
    make_run(tmp_path, max_epochs=2).trainer.run()
    longer = make_run(tmp_path, max_epochs=3, resume=True)
    longer.trainer.run()
    assert longer.trainer.state.epoch == 3
    assert longer.trainer.state.iteration == 18


def test_early_stopped_run_stays_stopped(make_run, tmp_path):
    # no learning: the validation loss never falls
    first = make_run(tmp_path, patience=2, learning_rate=0.0, max_epochs=8)
    first.trainer.run()
    assert first.trainer.state.epoch == 3
    again = make_run(tmp_path, patience=2, learning_rate=0.0, max_epochs=8, resume=True)
    again.trainer.run()
    assert again.trainer.state.epoch == 3


def test_early_stopping_counts_across_a_kill(make_run, tmp_path):
    _kill_after(make_run(tmp_path, patience=3, learning_rate=0.0, max_epochs=8), 15)
    run = make_run(tmp_path, patience=3, learning_rate=0.0, max_epochs=8, resume=True)
    run.trainer.run()
    assert run.trainer.state.epoch == 4


def test_new_run_keeps_the_earlier_one(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    old_state = (tmp_path / "last.pt").read_bytes()
    old_best = (tmp_path / "model.pt").read_bytes()
    make_run(tmp_path, max_epochs=2).trainer.run()
    assert (tmp_path / "previous_last.pt").read_bytes() == old_state
    assert (tmp_path / "previous_model.pt").read_bytes() == old_best
    assert (tmp_path / "last.pt").read_bytes() != old_state


def test_checkpoints_hold_no_code(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {"network", "states", "scaler", "progress", "best", "random"} <= last.keys()
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in best.values())


def test_other_network_is_refused(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    with pytest.raises(InputError, match=r"last\.pt belongs to another network: 3 of 4 .*0\.weight: \(8, 1"):
        make_run(tmp_path, max_epochs=2, resume=True, width=8).trainer.run()


def test_other_data_is_refused(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    with pytest.raises(InputError, match=r"6 steps an epoch on 1 process.* this one has 4"):
        make_run(tmp_path, max_epochs=2, resume=True, num_examples=8).trainer.run()


def test_weights_alone_are_refused(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    with pytest.raises(InputError, match="--initial_weights"):
        make_run(tmp_path / "new", max_epochs=2, resume=str(tmp_path / "model.pt")).trainer.run()


def test_missing_file_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint at .*nothing.pt"):
        make_run(tmp_path, resume=str(tmp_path / "nothing.pt")).trainer.run()


def test_random_state_round_trip(tmp_path):
    random.gauss(0, 1)  # leaves a second value in store
    np.random.standard_normal(3)  # noqa: NPY002
    torch.save([capture_random_state(torch.device("cpu"))], tmp_path / "state.pt")
    drawn = (random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3))  # noqa: NPY002
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    again = (random.random(), random.gauss(0, 1), np.random.standard_normal(3), torch.rand(3))  # noqa: NPY002
    assert drawn[:2] == again[:2]
    assert np.array_equal(drawn[2], again[2])
    assert torch.equal(drawn[3], again[3])


def test_network_without_parameters_difference_is_named():
    from boltzformer.weights import check_fit

    with pytest.raises(InputError, match="extra: absent here"):
        check_fit(nn.Linear(2, 2), {**nn.Linear(2, 2).state_dict(), "extra": torch.zeros(1)}, "file.pt")


def test_full_disk_ends_training_and_keeps_the_good_checkpoint(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    good = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses longer files, as a full disk does
    try:
        with pytest.raises(InputError, match=r"cannot write checkpoint .*--resume true"):
            make_run(tmp_path, max_epochs=3, resume=True).trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.pt").read_bytes() == good
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    run = make_run(tmp_path, max_epochs=3, resume=True)
    run.trainer.run()
    assert run.trainer.state.epoch == 3
