"""A small real training run: MONAI's trainer and evaluator, a network with dropout, seeded data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from boltzformer.data.samplers import EpochSampler
from boltzformer.training.buffers import ShareBuffers
from boltzformer.training.checkpoint import BestWeights, RunCheckpoint
from boltzformer.training.early_stopping import EarlyStoppingOnValidation
from boltzformer.training.gradients import ClipGradients
from boltzformer.training.schedule import WarmupCosine
from boltzformer.training.validation_loss import ValidationLoss
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted
from monai.utils import set_determinism
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset):
    """Bright squares on noise; a draw depends on (seed, epoch, index) alone."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = np.random.default_rng([self.seed, self.epoch, index])
        label = np.zeros((1, 16, 16), np.float32)
        row, column = draw.integers(0, 11, 2)
        label[:, row : row + 5, column : column + 5] = 1
        image = 0.5 * label + 0.3 * draw.random((1, 16, 16), np.float32)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


@dataclass
class Run:
    """One run's parts."""

    trainer: SupervisedTrainer
    validator: SupervisedEvaluator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    early_stopping: EarlyStoppingOnValidation
    train_handlers: list[Any]


def build_run(
    output_dir: Path,
    *,
    resume: bool | str = False,
    every_minutes: float = 0,
    max_epochs: int = 4,
    width: int = 4,
    patience: int = 10,
    num_examples: int = 12,
    num_workers: int = 0,
    learning_rate: float = 1e-2,
    distributed: bool = False,
) -> Run:
    """Everything the bundle's train.json puts together, on a toy network; multi_gpu_train.json too if `distributed`."""
    rank = dist.get_rank() if distributed else 0
    set_determinism(seed=7 + rank)
    network = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(width, 1, 1))
    computing: nn.Module = network
    if distributed:
        network.insert(1, nn.BatchNorm2d(width))  # whose buffers differ between processes
        computing = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    data = Squares(num_examples)
    loader = DataLoader(
        data, batch_size=2, sampler=EpochSampler(data, seed=3), num_workers=num_workers, generator=torch.Generator()
    )
    schedule = WarmupCosine(optimizer, warmup_steps=3, total_steps=max_epochs * len(loader))
    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    best = BestWeights(network, output_dir / "model.pt", output_dir)
    validator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Squares(1 + 2 * rank if distributed else 4, seed=99 + rank), batch_size=2),
        network=computing,
        key_val_metric={"val_dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
        additional_metrics={"val_loss": ValidationLoss(loss)},
        postprocessing=AsDiscreted(keys="pred", threshold=0.0),
        val_handlers=[best, ShareBuffers(network)] if distributed else [best],
    )
    stopping = EarlyStoppingOnValidation(validator, patience)
    states = {"optimizer": optimizer, "schedule": schedule, "early_stopping": stopping, "best_weights": best}
    handlers = [
        RunCheckpoint(output_dir, network, states, validator, resume, every_minutes),
        LrScheduleHandler(schedule, epoch_level=False, print_lr=False),
        ClipGradients(network.parameters(), 1.0),
        ValidationHandler(1, validator),
        stopping,
    ]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=computing,
        optimizer=optimizer,
        loss_function=loss,
        train_handlers=handlers,
    )
    return Run(trainer, validator, network, optimizer, stopping, handlers)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Builder of runs; see `build_run`."""
    return build_run


@pytest.fixture(autouse=True)
def _leave_random_state_alone() -> Any:
    python, torch_state = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    deterministic = torch.backends.cudnn.deterministic
    yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(torch_state)
    torch.backends.cudnn.deterministic = deterministic
