"""Best weights, the state of a run, and taking a run up again."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import ignite.distributed as idist
from ignite.engine import Events
from monai.engines import Evaluator, SupervisedTrainer, Workflow
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from boltzformer.error_report import reason_of
from boltzformer.errors import InputError
from boltzformer.recipe import check_same_recipe
from boltzformer.training.gradients import steps_now
from boltzformer.training.interruption import Interruption
from boltzformer.training.optimizer_state import load_optimizer_state
from boltzformer.training.random_state import gather_random_state, restore_random_state
from boltzformer.training.skipping import SkippingLoader
from boltzformer.weights import NETWORK_KEY, check_fit, keep_previous, read_checkpoint, save_atomically

logger = logging.getLogger(__name__)

FORMAT = 1
LAST_NAME = "last.pt"
MAY_BE_ABSENT = frozenset({"curves", "effort"})
"""States that began with a later version; a run without them goes on."""


class Stateful(Protocol):
    """Anything whose state a checkpoint holds: an optimizer, a schedule, an early-stopping handler."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take up a state."""


class BestWeights:
    """Ignite handler: keeps the network's weights of the best validation so far, and nothing but them.

    List it among the validator's handlers and among the states of `RunCheckpoint`. The first save of a run
    moves the file of another run to `<output_dir>/previous_001_<name>` (or the next free number); a resumed run goes on
    with its own file.

    Args:
        network: the bare network (not its DDP wrapper); the file is its state dict.
        path: the file, `models/model.pt` in the bundle.
        output_dir: the run's folder.
        recipe: what the network is trained with; each file carries it, with the result that made it the best.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.recipe = recipe
        self.path = Path(path)
        self.output_dir = Path(output_dir)
        self._owns_file = False

    def attach(self, engine: Workflow) -> None:
        """Look at the key metric after every validation of `engine`, a MONAI evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        """Save where this validation was the best."""
        state = engine.state
        if state.best_metric_epoch != state.epoch or idist.get_rank() > 0:
            return
        if math.isnan(float(state.best_metric)):
            state.best_metric_epoch = -1
            raise InputError(
                f"{state.key_metric_name} is not a number: the validation list holds no slice with an "
                "object; give labelled validation cases."
            )
        if not self._owns_file:
            kept = keep_previous(self.path, self.output_dir)
            if kept is not None:
                logger.info("the weights of an earlier run, %s, are kept as %s", self.path, kept)
            self._owns_file = True
        name, value = state.key_metric_name, state.best_metric
        result = {"result": {name: float(value), "epoch": state.epoch}}
        save_atomically(
            self.network.state_dict(), self.path, None if self.recipe is None else {**self.recipe, **result}
        )
        logger.info("epoch %d: best %s so far, %.4f -> %s", state.epoch, name, value, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Whether the file at `path` is this run's."""
        return {"owns_file": self._owns_file}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up an earlier run's state."""
        self._owns_file = state_dict["owns_file"]


class RunCheckpoint:
    """Ignite handler: writes the whole state of a run to `<output_dir>/last.pt` and takes it up again.

    The state: network, optimizer and whatever else is in `states`, the gradient scaler, epoch and step, the
    validator's best metric, and the random states of python, numpy, torch and CUDA of every process. A run
    that was killed and resumed gives, bit for bit on the same device, what an uninterrupted run gives.

    List it first among the trainer's handlers: it then restores before any other handler looks, while its
    saves are registered at the start of the run and so come after every other handler of their event.

    Args:
        output_dir: the run's folder.
        network: the bare network (not its DDP wrapper).
        states: name -> object with `state_dict` and `load_state_dict`.
        validator: the evaluator whose best metric belongs to the run.
        resume: True takes up `<output_dir>/last.pt` where there is one; a path takes up that file; False
            begins anew.
        every_minutes: also save inside an epoch, when this much time has passed since the last save; 0 saves at the
            ends of epochs only.
        recipe: what the network is trained with; the file carries it.
        override: settings that may differ from the resumed run's, as in `recipe_for`.
        interruption: a signal's wish that the run saves and stops; its `leave` ends the process with the signal's code.

    Raises:
        InputError: at the start, if the file to resume cannot be read, or belongs to another network, other
            data or another number of processes; later, if a save fails (the earlier file stays).
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        network: nn.Module,
        states: Mapping[str, Stateful],
        validator: Evaluator | None = None,
        resume: bool | str = False,
        every_minutes: float = 5.0,
        recipe: Mapping[str, Any] | None = None,
        override: Sequence[str] = (),
        interruption: Interruption | None = None,
    ) -> None:
        self.path = Path(output_dir) / LAST_NAME
        self.network = network
        self.states = dict(states)
        self.validator = validator
        # `--resume true` on MONAI's command line arrives as a string
        self.resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
        self.every_seconds = 60 * float(every_minutes)
        self.recipe = recipe
        self.override = override
        self.interruption = interruption or Interruption()
        self._last_save = time.monotonic()
        self._started = False

    def attach(self, engine: Workflow) -> None:
        """Checkpoint `engine`, a MONAI trainer."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Workflow) -> None:
        if self._started:  # the same engine runs again: its state is alive
            return
        self._started = True
        source = self._source()
        if source is not None:
            self._restore(engine, source)
        self._last_save = time.monotonic()
        self.interruption.watch()
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.interruption.forget())

    def _source(self) -> Path | None:
        """The checkpoint to take up, if any; an earlier run's file that is not taken up is moved aside."""
        if isinstance(self.resume, str | os.PathLike):
            return Path(self.resume)
        if self.resume:
            if self.path.is_file():
                return self.path
            logger.info("resume: no %s yet, training begins anew", self.path)
            return None
        if idist.get_rank() == 0 and (kept := keep_previous(self.path)) is not None:
            logger.info("a new run begins; the earlier one's state is kept as %s", kept)
        return None

    def _after_step(self, engine: Workflow) -> None:
        # the end of an epoch is saved after its validation; gradients that are not yet stepped are no part of a state
        if engine.state.iteration % engine.state.epoch_length == 0 or not steps_now(cast(SupervisedTrainer, engine)):
            return
        due = 0 < self.every_seconds <= time.monotonic() - self._last_save
        wish = self._agreed(2 if self.interruption.signal else int(due))
        if wish:
            self._save(engine)
        if wish == 2:
            self._stop(engine)

    def _after_epoch(self, engine: Workflow) -> None:
        self._save(engine)
        if self._agreed(2 if self.interruption.signal else 0):
            self._stop(engine)

    def _agreed(self, wish: int) -> int:
        """The strongest wish among the processes, which have to save at the same step."""
        if idist.get_world_size() == 1:
            return wish
        return int(cast(float, idist.all_reduce(wish, "MAX")))

    def _stop(self, engine: Workflow) -> None:
        state = engine.state
        done = f"stopped at epoch {state.epoch}, step {state.iteration}"
        logger.warning("%s; the state is in %s, `--resume true` goes on", done, self.path)
        self.interruption.obey()
        engine.terminate()

    def _save(self, engine: Workflow) -> None:
        random_states = gather_random_state(engine.state.device)
        self._last_save = time.monotonic()
        if idist.get_rank() > 0:
            return
        content = {
            "format": FORMAT,
            NETWORK_KEY: self.network.state_dict(),
            "states": {name: item.state_dict() for name, item in self.states.items()},
            "scaler": engine.scaler.state_dict() if engine.scaler is not None else {},
            "progress": {"iteration": engine.state.iteration, "epoch_length": engine.state.epoch_length},
            "best": _best(self.validator),
            "random": random_states,
        }
        save_atomically(content, self.path, self.recipe)

    def _restore(self, engine: Workflow, path: Path) -> None:
        try:
            self._take_up(engine, path)
        except InputError:
            raise
        # a file that is whole by its checksum may still hold other entries than a run's
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{path} is no state of a run ({reason_of(error)}): resume from another {LAST_NAME} or begin anew."
            ) from error

    def _take_up(self, engine: Workflow, path: Path) -> None:
        content = read_checkpoint(path)
        _check_run(content, path, self.states, engine)
        if self.recipe is not None:
            check_same_recipe(self.recipe, path, self.override)
        check_fit(self.network, content[NETWORK_KEY], path)
        self.network.load_state_dict(content[NETWORK_KEY])
        # optimizers first: a schedule sets their rates
        for name, item in sorted(self.states.items(), key=lambda entry: not isinstance(entry[1], Optimizer)):
            if name in content["states"] and isinstance(item, Optimizer):
                load_optimizer_state(item, content["states"][name])
            elif name in content["states"]:
                item.load_state_dict(content["states"][name])
        if engine.scaler is not None and content["scaler"]:
            engine.scaler.load_state_dict(content["scaler"])
        if self.validator is not None:
            for name, value in content["best"].items():
                setattr(self.validator.state, name, (int if name.endswith("epoch") else float)(value))
        _set_position(engine, content["progress"]["iteration"])
        restore_random_state(content["random"], engine.state.device)  # last: what is built above may draw
        logger.info(
            "resumed %s: epoch %d, step %d are done",
            path,
            engine.state.epoch,
            content["progress"]["iteration"],
        )
        if engine.state.epoch >= engine.state.max_epochs:
            logger.warning("%s: all %d epochs are done; raise max_epochs to go on", path, engine.state.epoch)


def _best(validator: Evaluator | None) -> dict[str, float | int]:
    if validator is None:
        return {}
    return {
        "best_metric": float(validator.state.best_metric),
        "best_metric_epoch": int(validator.state.best_metric_epoch),
    }


def _check_run(content: Mapping[str, Any], path: Path, states: Mapping[str, Stateful], engine: Workflow) -> None:
    """Refuse a file that is no state of this run."""
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} is no state of a run (weights alone, or another version's): resume from a {LAST_NAME}, "
            f"or begin a new run from these weights with `--initial_weights {path}`."
        )
    done = content["progress"]["iteration"]
    if not isinstance(done, int) or done < 0:
        raise ValueError(f"{done!r} steps are done")
    there = (content["progress"]["epoch_length"], len(content["random"]))
    here = (engine.state.epoch_length, idist.get_world_size())
    if there != here or not set(states) - MAY_BE_ABSENT <= set(content["states"]) <= set(states):
        raise InputError(
            f"{path} was written by a run with {there[0]} steps an epoch on {there[1]} process(es), this one "
            f"has {here[0]} on {here[1]}: resume with the same data, batch size, handlers and processes, or "
            f"begin a new run from its weights with `--initial_weights {path}`."
        )


def _set_position(engine: Workflow, iteration: int) -> None:
    """Let the engine go on after `iteration` steps, in the middle of an epoch too."""
    engine.state.iteration = iteration
    engine.state.epoch = iteration // engine.state.epoch_length
    steps_into_epoch = iteration % engine.state.epoch_length
    if steps_into_epoch:
        # the engine begins the epoch anew, whose order depends on its number alone: skip what was seen
        engine.state.dataloader = SkippingLoader(cast(DataLoader, engine.data_loader), steps_into_epoch)
