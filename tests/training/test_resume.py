"""A run that was killed and taken up again equals one that was not."""

from __future__ import annotations

import copy
import os
import random
import resource
import signal

import numpy as np
import pytest
import torch
from boltzformer.errors import InputError
from boltzformer.training.random_state import capture_random_state, restore_random_state
from boltzformer.weights import save_atomically
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
    ("every_minutes", "killed_after", "num_workers"),
    [(0, 15, 0), (1e-9, 15, 0), (1e-9, 9, 0), (0, 12, 0), (1e-9, 23, 0), (1e-9, 15, 2)],
)
def test_resumed_equals_uninterrupted(make_run, tmp_path, every_minutes, killed_after, num_workers):
    whole = make_run(tmp_path / "whole", num_workers=num_workers)
    whole.trainer.run()
    after_whole = torch.rand(4)

    _kill_after(make_run(tmp_path / "cut", every_minutes=every_minutes, num_workers=num_workers), killed_after)
    cut = make_run(tmp_path / "cut", every_minutes=every_minutes, resume=True, num_workers=num_workers)
    random.seed(1234)  # whatever the new process drew before
    torch.rand(17)
    cut.trainer.run()
    after_cut = torch.rand(4)

    _assert_same(whole, cut)
    assert torch.equal(after_whole, after_cut)
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


@pytest.mark.parametrize(("every_minutes", "best_is_saved"), [(0, False), (1e-9, False), (1e-9, True)])
def test_a_kill_during_validation_changes_nothing(make_run, tmp_path, every_minutes, best_is_saved):
    """Killed in the second epoch's validation: before it is complete, or between `model.pt` and `last.pt`."""
    whole = make_run(tmp_path / "whole")
    whole.trainer.run()
    cut = make_run(tmp_path / "cut", every_minutes=every_minutes)

    def kill(engine):
        if engine.state.epoch == 2:
            raise Killed

    cut.validator.add_event_handler(Events.EPOCH_COMPLETED if best_is_saved else Events.ITERATION_COMPLETED, kill)
    with pytest.raises(Killed):
        cut.trainer.run()
    again = make_run(tmp_path / "cut", every_minutes=every_minutes, resume=True)
    again.trainer.run()
    _assert_same(whole, again)
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
    assert not list((tmp_path / "cut").glob(".*"))
    assert not list((tmp_path / "cut").glob("previous_*"))


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
    assert (tmp_path / "previous_001_last.pt").read_bytes() == old_state
    assert (tmp_path / "previous_001_model.pt").read_bytes() == old_best
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


def test_three_runs_in_one_folder_lose_nothing(make_run, tmp_path):
    contents = []
    for epochs in (1, 2, 3):
        make_run(tmp_path, max_epochs=epochs).trainer.run()
        contents.append([(tmp_path / name).read_bytes() for name in ("last.pt", "model.pt")])
    for number, (last, best) in enumerate(contents[:2], start=1):
        assert (tmp_path / f"previous_{number:03d}_last.pt").read_bytes() == last
        assert (tmp_path / f"previous_{number:03d}_model.pt").read_bytes() == best


def test_kill_between_best_and_state_loses_no_earlier_best(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    earlier = (tmp_path / "model.pt").read_bytes()
    second = make_run(tmp_path, max_epochs=1)
    second.train_handlers[0]._save = lambda engine: (_ for _ in ()).throw(Killed)  # after model.pt, before last.pt
    with pytest.raises(Killed):
        second.trainer.run()
    make_run(tmp_path, max_epochs=1, resume=True).trainer.run()
    kept = [path.read_bytes() for path in tmp_path.glob("previous_*_model.pt")]
    assert earlier in kept
    assert len(kept) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_a_resumed_run_equals_the_whole(make_run, tmp_path, caplog, number):
    whole = make_run(tmp_path / "whole")
    whole.trainer.run()
    cut = make_run(tmp_path / "cut")
    cut.trainer.add_event_handler(Events.ITERATION_STARTED(once=9), lambda engine: os.kill(os.getpid(), number))
    cut.trainer.run()
    assert cut.trainer.state.iteration == 9
    assert "stopped at epoch 2, step 9" in caplog.text
    with pytest.raises(SystemExit) as left:
        cut.train_handlers[0].interruption.leave()
    assert left.value.code == 128 + number
    again = make_run(tmp_path / "cut", resume=True)
    again.trainer.run()
    again.train_handlers[0].interruption.leave()
    _assert_same(whole, again)


def test_checkpoints_inside_an_epoch_by_time(make_run, tmp_path, monkeypatch):
    run = make_run(tmp_path, max_epochs=1, every_minutes=5)
    clock = [0.0]
    monkeypatch.setattr("boltzformer.training.checkpoint.time.monotonic", lambda: clock[0])
    saved = []
    save = run.train_handlers[0]._save

    def note(engine):
        saved.append(engine.state.iteration)
        save(engine)

    run.train_handlers[0]._save = note

    def tick(engine):
        clock[0] += 120.0

    run.trainer.add_event_handler(Events.ITERATION_STARTED, tick)
    run.trainer.run()
    assert saved == [3, 6]  # 6 minutes, and the end of the epoch


def test_no_checkpoint_between_accumulated_gradients(make_run, tmp_path):
    run = make_run(tmp_path, max_epochs=1, every_minutes=1e-9)
    run.trainer.accumulation_steps = 4
    saved = []
    run.train_handlers[0]._save = lambda engine: saved.append(engine.state.iteration)
    run.trainer.run()
    assert saved == [4, 6]


def test_a_finished_run_says_so(make_run, tmp_path, caplog):
    make_run(tmp_path, max_epochs=1).trainer.run()
    make_run(tmp_path, max_epochs=1, resume=True).trainer.run()
    assert "all 1 epochs are done; raise max_epochs" in caplog.text


def test_a_longer_run_goes_on_from_its_rate(make_run, tmp_path):
    first = make_run(tmp_path, max_epochs=2)
    first.trainer.run()
    reached = first.optimizer.param_groups[0]["lr"]
    longer = make_run(tmp_path, max_epochs=6, resume=True)
    rates = []
    longer.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: rates.append(longer.optimizer.param_groups[0]["lr"])
    )
    longer.trainer.run()
    assert len(rates) == 24
    assert max(rates) <= reached * (1 + 1e-6)
    assert reached < 0.02 * 1e-2


def test_a_resumed_run_takes_the_settings_that_it_is_given(make_run, tmp_path, caplog):
    _kill_after(make_run(tmp_path, learning_rate=1e-2), 15)  # in its third epoch
    share = torch.load(tmp_path / "last.pt", weights_only=True)["states"]["schedule"]["share"]
    run = make_run(tmp_path, learning_rate=1e-3, resume=True)
    run.optimizer.param_groups[0]["weight_decay"] = 0.3
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=13), lambda engine: engine.terminate())
    rates = []
    run.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: rates.append(run.optimizer.param_groups[0]["lr"])
    )
    run.trainer.run()
    assert rates == pytest.approx([1e-3 * share])
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.3
    assert "goes on with the learning rates [0.001], it had [0.01]" in caplog.text
    assert "goes on with weight_decay 0.3, it had 0.01" in caplog.text


def test_another_window_is_refused_on_resume(make_run, tmp_path):
    network = {"type": "Small"}
    recipes = [{"network": network, "input": {"window": w, "axis": 2, "num_adjacent": 0}} for w in ("lung", "bone")]
    first = make_run(tmp_path, max_epochs=1)
    first.train_handlers[0].recipe = recipes[0]
    first.trainer.run()
    other = make_run(tmp_path, max_epochs=2, resume=True)
    other.train_handlers[0].recipe = recipes[1]
    with pytest.raises(InputError, match=r"window is 'bone' here, but .*last\.pt was trained with 'lung'"):
        other.trainer.run()


@pytest.mark.parametrize("told", [False, True])
def test_other_data_is_told_on_resume(make_run, tmp_path, caplog, told):
    begun = {"datasets": ["own"], "cases": 17, "patients": 17, "objects": {}}
    recipe = {"network": {"type": "Small"}, "input": {"window": "lung", "axis": 2, "num_adjacent": 0}}
    first = make_run(tmp_path, max_epochs=1)
    first.train_handlers[0].recipe = {**recipe, "trained_on": begun}
    first.trainer.run()
    other = make_run(tmp_path, max_epochs=2, resume=True)
    other.train_handlers[0].recipe = {**recipe, "trained_on": {**begun, "cases": 34} if told else begun}
    other.trainer.run()
    assert ("begun with other data (cases: 17, now 34)" in caplog.text) == told


def test_scaler_and_best_weights_are_restored(make_run, tmp_path):
    def scaler(scale):
        return torch.amp.GradScaler("cpu", init_scale=scale)

    first = make_run(tmp_path, max_epochs=1)
    first.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: setattr(engine, "scaler", scaler(32.0))
    )  # before the save, which is registered when the run starts
    first.trainer.run()
    again = make_run(tmp_path, max_epochs=2, resume=True)
    started = again.trainer._event_handlers[Events.STARTED]
    again.trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", scaler(8.0)))
    started.insert(0, started.pop())
    seen = []

    def look(engine):
        seen.append(engine.scaler.get_scale())
        engine.scaler = None  # this run computes without it

    again.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), look)
    again.trainer.run()
    assert seen == [32.0]
    assert again.trainer.state.epoch == 2
    assert not list(tmp_path.glob("previous_*"))  # model.pt was this run's own, not another's to be moved aside


def test_damaged_state_is_refused_in_one_line(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["network"]["0.bias"][0] = float("nan")
    save_atomically(content, tmp_path / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt holds values that are no numbers .*network\.0\.bias"):
        make_run(tmp_path, max_epochs=2, resume=True).trainer.run()


def test_best_is_the_highest_dice_not_the_last_and_not_the_lowest_loss(make_run, tmp_path):
    run = make_run(tmp_path, max_epochs=3)
    forced = {1: (0.5, 3.0), 2: (0.9, 2.0), 3: (0.3, 1.0)}  # epoch: Dice, loss

    def force(engine):
        engine.state.metrics["val_dice"], engine.state.metrics["val_loss"] = forced[engine.state.epoch]

    handlers = run.validator._event_handlers[Events.EPOCH_COMPLETED]
    run.validator.add_event_handler(Events.EPOCH_COMPLETED, force)
    handlers.insert(1, handlers.pop())  # after the metrics, before MONAI compares with the best
    states = {}
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: states.update({engine.state.epoch: copy.deepcopy(run.network.state_dict())}),
    )
    run.trainer.run()
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    same = [epoch for epoch, state in states.items() if all(torch.equal(saved[key], state[key]) for key in state)]
    assert same == [2]


def test_a_state_of_other_entries_is_one_line(make_run, tmp_path):
    make_run(tmp_path, max_epochs=1).trainer.run()
    whole = torch.load(tmp_path / "last.pt", weights_only=True)
    others = {
        "progress": {"iteration": 1.5, "epoch_length": 6},
        "network": 5,
        "random": [],
        "states": {"optimizer": 1},
        "best": {"best_metric": "a"},
    }
    for key, value in others.items():
        save_atomically({**whole, key: value}, tmp_path / "last.pt")
        with pytest.raises(InputError, match=r"last\.pt"):
            make_run(tmp_path, max_epochs=2, resume=True).trainer.run()


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ("early_stopping", {"best_score": {}}),
        ("early_stopping", {"counter": "many"}),
        ("schedule", {"base_lrs": []}),
        ("optimizer", {"state": {0: []}}),
        ("optimizer", {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}}),
        ("optimizer", {"param_groups": [{"lr": 1e-2, "betas": None, "params": [0, 1, 2, 3]}]}),
    ],
)
def test_a_state_of_other_kinds_is_one_line_before_the_first_step(make_run, tmp_path, state, change):
    make_run(tmp_path, max_epochs=1).trainer.run()
    whole = torch.load(tmp_path / "last.pt", weights_only=True)
    states = {**whole["states"], state: {**whole["states"][state], **change}}
    save_atomically({**whole, "states": states}, tmp_path / "last.pt")
    run = make_run(tmp_path, max_epochs=2, resume=True)
    with pytest.raises(InputError, match=r"last\.pt is no state of a run"):
        run.trainer.run()
    assert run.trainer.state.iteration == 0
