"""Training ends when the validation loss no longer falls (the paper's rule)."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import Evaluator

logger = logging.getLogger(__name__)


class EarlyStoppingOnValidation:
    """Ignite handler around ignite's `EarlyStopping`, for a trainer whose validation runs inside its epochs.

    List it after the `ValidationHandler`. It looks only at epochs in which the validator ran, keeps a state
    that checkpoints hold, and ends a resumed run that had already stopped.

    Args:
        validator: the evaluator that measures.
        patience: validations without improvement until training ends, at least 1.
        metric: name of the validator's metric that should fall.
        threshold: smallest fall that counts.
    """

    def __init__(self, validator: Evaluator, patience: int, metric: str = "val_loss", threshold: float = 0.0) -> None:
        self.validator = validator
        self.metric = metric
        self._patience = patience
        self._threshold = threshold
        self._stopper: EarlyStopping | None = None
        self._state: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Stop `engine`, the trainer."""
        self._stopper = EarlyStopping(self._patience, self._score, engine, threshold=self._threshold, mode="min")
        if self._state is not None:
            self._stopper.load_state_dict(self._state)
        engine.add_event_handler(Events.STARTED, self._stay_stopped)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Judge the epoch that just ended, if it was validated."""
        if self._stopper is not None and self.validator.state.epoch == engine.state.epoch:
            self._stopper(engine)

    def _score(self, engine: Engine) -> float:
        return float(self.validator.state.metrics[self.metric])

    def _stay_stopped(self, engine: Engine) -> None:
        if self._stopper is not None and self._stopper.counter >= self._patience:
            logger.warning("this run is complete: %s has not fallen for %d validations", self.metric, self._patience)
            engine.terminate()

    def state_dict(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return dict(self._stopper.state_dict()) if self._stopper is not None else dict(self._state or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an earlier run's state."""
        best = state["best_score"]
        state = {**state, "counter": int(state["counter"]), "best_score": None if best is None else float(best)}
        self._state = state
        if self._stopper is not None:
            self._stopper.load_state_dict(state)
