"""Clipping, schedule, sampler, validation loss, progress."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from boltzformer.data.throughput import measure_loader
from boltzformer.errors import InputError
from boltzformer.training.early_stopping import EarlyStoppingOnValidation
from boltzformer.training.gradients import ClipGradients, StopOnNonFiniteLoss, steps_now
from boltzformer.training.losses import DecodedLoss
from boltzformer.training.progress import Progress
from boltzformer.training.schedule import WarmupCosine
from boltzformer.training.skipping import SkippingLoader
from boltzformer.training.validation_loss import ValidationLoss
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader


def _trainer(loader, network, optimizer, handlers, **kwargs):
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(reduction="sum"),
        train_handlers=handlers,
        **kwargs,
    )


def _linear_data(steps):
    return [{"image": torch.full((1, 1), 10.0), "label": torch.zeros(1, 1)} for _ in range(steps)]


def _one_weight():
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    return network


def test_gradient_is_clipped_before_the_step():
    network = _one_weight()
    clip = ClipGradients(network.parameters(), max_norm=0.5)
    trainer = _trainer(_linear_data(1), network, torch.optim.SGD(network.parameters(), lr=1.0), [clip])
    trainer.run()
    # d(10 w)² / dw = 200 at w = 1, clipped to 0.5
    assert network.weight.item() == pytest.approx(0.5)
    assert float(trainer.state.gradient_norm) == pytest.approx(200.0)


def test_small_gradient_is_left_alone():
    network = _one_weight()
    clip = ClipGradients(network.parameters(), max_norm=1e4)
    _trainer(_linear_data(1), network, torch.optim.SGD(network.parameters(), lr=1e-3), [clip]).run()
    assert network.weight.item() == pytest.approx(0.8)


def test_only_the_accumulated_gradient_is_clipped():
    network = _one_weight()
    seen = []
    clip = ClipGradients(network.parameters(), max_norm=0.5)
    trainer = _trainer(
        _linear_data(5), network, torch.optim.SGD(network.parameters(), lr=0.0), [clip], accumulation_steps=2
    )
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda engine: seen.append(float(network.weight.grad))
    )
    trainer.run()
    # halves of 200, clipped where the trainer steps: after 2, 4 and the last of 5
    assert seen == pytest.approx([100, 0.5, 100, 0.5, 0.5])


@pytest.mark.parametrize("steps", [5, 8, 10])
def test_an_epochs_last_group_is_a_mean_too(steps):
    network = _one_weight()
    norms = []
    clip = ClipGradients(network.parameters(), max_norm=1e4)
    trainer = _trainer(
        _linear_data(steps), network, torch.optim.SGD(network.parameters(), lr=0.0), [clip], accumulation_steps=4
    )
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda engine: (
            norms.append((engine.state.iteration, float(network.weight.grad))) if steps_now(engine) else None
        ),
    )
    trainer.run()
    # every batch alone has a gradient of 200, and so has a mean of 4, 2 or 1 of them
    closing = sorted({4, 8, steps} & set(range(1, steps + 1)))
    assert norms == [(i, pytest.approx(200)) for i in closing]


def test_scaled_gradient_is_unscaled_first():
    network = _one_weight()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    trainer = _trainer(_linear_data(1), network, optimizer, [])
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.state.iteration = 1
    trainer.scaler.scale((network(torch.tensor([[10.0]])) ** 2).sum()).backward()
    assert float(network.weight.grad) == pytest.approx(200 * 1024)
    ClipGradients(network.parameters(), max_norm=0.5)(trainer)
    assert float(network.weight.grad) == pytest.approx(0.5)
    assert float(trainer.state.gradient_norm) == pytest.approx(200)
    trainer.scaler.step(optimizer)
    assert network.weight.item() == pytest.approx(0.5)


def test_bad_norm_is_refused():
    with pytest.raises(InputError, match="max_norm is 0"):
        ClipGradients([], 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_training_stops_before_a_bad_loss_spoils_the_weights(bad):
    network = _one_weight()
    data = _linear_data(2)
    data[1]["label"].fill_(bad)
    trainer = _trainer(data, network, torch.optim.SGD(network.parameters(), lr=1e-3), [StopOnNonFiniteLoss()])
    with pytest.raises(InputError, match="epoch 1, step 2: lower `learning_rate`"):
        trainer.run()
    assert network.weight.item() == pytest.approx(0.8)


@pytest.mark.parametrize("amp", [False, True])
def test_a_gradient_that_is_not_finite_makes_no_step(caplog, amp):
    network = _one_weight()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    trainer = _trainer(_linear_data(4), network, optimizer, [ClipGradients(network.parameters())], accumulation_steps=2)
    if amp:  # on a CPU a scaler of MONAI's trainer is not enabled, and looks at nothing
        trainer.scaler = torch.amp.GradScaler("cuda", enabled=False)
    weights, spoilt = [], Events.ITERATION_STARTED(once=1)
    trainer.add_event_handler(
        spoilt, lambda: network.weight.register_hook(lambda grad: grad * (math.inf if not weights else 1))
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: weights.append(network.weight.item()))
    trainer.run()
    assert weights[:3] == [1, 1, 1]
    assert 0 < weights[3] < 1
    assert [record.getMessage() for record in caplog.records if "not finite" in record.message] == [
        "the gradient at epoch 1, step 2 is not finite: the weights stay as they are in this step"
    ]


def test_schedule_warms_up_and_falls_along_a_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer, warmup_steps=4, total_steps=14, final_share=0.1)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert rates[4] == pytest.approx(2.0)
    assert [rates[k] for k in (6, 8, 9, 12)] == pytest.approx([1.8281153, 1.3781153, 1.1, 0.3718847])  # no line
    assert rates[14:] == pytest.approx([0.2] * 6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_leaves_out_the_first_batches_once(num_workers):
    loader = DataLoader(list(range(10)), batch_size=3, num_workers=num_workers)
    skipping = SkippingLoader(loader, 2)
    assert [batch.tolist() for batch in skipping] == [[6, 7, 8], [9]]
    assert [batch.tolist() for batch in skipping] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(skipping) == 4


def test_validation_loss_is_that_of_the_logits(make_run, tmp_path):
    run = make_run(tmp_path)
    run.validator.run()
    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    run.network.eval()
    with torch.no_grad():
        dataset = run.validator.data_loader.dataset
        expected = [
            float(loss(run.network(dataset[i]["image"][None]), dataset[i]["label"][None])) for i in range(len(dataset))
        ]
    assert run.validator.state.metrics["val_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("existence_weight", [0.0, 1.0])
def test_validation_loss_counts_the_pairs_whose_masks_learn(existence_weight):
    torch.manual_seed(0)
    mask_loss = DiceCELoss(sigmoid=True, squared_pred=True)
    metric = ValidationLoss(DecodedLoss(mask_loss, existence_weight=existence_weight))
    expected = []
    for present in ([1, 0, 0], [0, 0], [1, 1]):
        logits, label = torch.randn(len(present), 1, 8, 8), torch.zeros(len(present), 1, 8, 8)
        label[:, 0, 2:5, 2:5] = torch.tensor(present)[:, None, None]
        metric.update((logits, label))
        some = [i for i, there in enumerate(present) if there or not existence_weight]
        expected += [float(mask_loss(logits[i : i + 1], label[i : i + 1])) for i in some]
    assert metric.compute() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_progress_lines(make_run, tmp_path, caplog, capsys):
    run = make_run(tmp_path, max_epochs=2)
    Progress(interval=0.0, bar=True, measure_loader=partial(measure_loader, seconds=0.01)).attach(run.trainer)
    Progress("validation", interval=1e9, bar=False).attach(run.validator)
    with caplog.at_level("INFO", logger="boltzformer.training.progress"):
        run.trainer.run()
    lines = [record.getMessage() for record in caplog.records]
    assert "the loader alone gives" in lines[0]
    steps = [line for line in lines if line.startswith("training: epoch 1/2, step 2/6")]
    assert len(steps) == 1
    for part in ("loss ", "lr ", "s/step", "pairs/s", "waiting for data", "epoch ends in", "training ends in"):
        assert part in steps[0]
    assert [line for line in lines if line.startswith("validation: epoch 1, step 2/2")]
    assert "training" in capsys.readouterr().err  # the bar


def test_numbers_of_the_progress_lines(make_run, tmp_path, caplog, monkeypatch):
    """Half a second of waiting and 1.5 of work a step, a loss that is the step's number, three pairs a step."""
    run = make_run(tmp_path, max_epochs=2)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("boltzformer.training.progress.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def wait(engine):
        clock.now += 0.5

    def work(engine):
        clock.now += 1.5
        engine.state.output = {"loss": float(engine.state.iteration), "label": [0, 0, 0]}

    run.trainer.add_event_handler(Events.GET_BATCH_COMPLETED, wait)
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED, work)
    Progress(interval=0.0, bar=False).attach(run.trainer)
    with caplog.at_level("INFO", logger="boltzformer.training.progress"):
        run.trainer.run()
    lines = {line.split(", loss")[0]: line for line in (record.getMessage() for record in caplog.records)}
    early, late = (lines[f"training: epoch {epoch}/2, step {step}/6"] for epoch, step in ((1, 2), (2, 4)))
    assert "loss 1.5000, " in early  # of steps 1 and 2
    assert "2.00 s/step, 1.5 pairs/s, waiting for data 25 %" in early
    assert early.endswith("epoch ends in 0:00:08, training ends in 0:00:20")
    assert "loss 8.5000, " in late  # of steps 7 to 10: an epoch begins anew
    assert late.endswith("epoch ends in 0:00:04, training ends in 0:00:04")


def test_measuring_the_loader_changes_no_result(make_run, tmp_path):
    plain, measured = make_run(tmp_path / "a"), None
    plain.trainer.run()
    measured = make_run(tmp_path / "b")
    Progress(bar=False, measure_loader=partial(measure_loader, seconds=0.01)).attach(measured.trainer)
    measured.trainer.run()
    for key, value in plain.network.state_dict().items():
        assert torch.equal(value, measured.network.state_dict()[key])


def test_best_weights_refuse_a_metric_that_is_no_number(make_run, tmp_path):
    run = make_run(tmp_path)

    def no_positive_slice(engine):
        engine.state.metrics["val_dice"] = math.nan

    handlers = run.validator._event_handlers[Events.EPOCH_COMPLETED]
    run.validator.add_event_handler(Events.EPOCH_COMPLETED, no_positive_slice)
    handlers.insert(1, handlers.pop())  # after the metric, before MONAI compares it with the best
    with pytest.raises(InputError, match="holds no slice with an object"):
        run.validator.run()
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("threshold", "stopped_after"), [(0.0, None), (0.15, 4)])
def test_a_fall_below_the_threshold_is_none(threshold, stopped_after):
    """The loss falls by 0.1 each time: enough without a threshold, standing still with one of 0.15."""
    validator = Engine(lambda engine, batch: None)
    stopping = EarlyStoppingOnValidation(validator, patience=3, threshold=threshold)
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        validator.state.epoch = engine.state.epoch
        validator.state.metrics = {"val_loss": 5 - 0.1 * engine.state.epoch}

    stopping.attach(trainer)
    trainer.run([0], max_epochs=8)
    assert trainer.state.epoch == (stopped_after or 8)
