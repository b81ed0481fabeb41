"""A validation before the first step: what a fine-tuning has to beat."""

from __future__ import annotations

import logging

from ignite.engine import Events
from monai.engines import Evaluator, Workflow

logger = logging.getLogger(__name__)


class FirstValidation:
    """Ignite handler: validates the weights that a training starts from, as epoch 0.

    The best result so far is then the start's, so that an epoch replaces it only where it is better. List it behind
    `RunCheckpoint`: a run that is taken up again has been validated.

    Args:
        validator: the evaluator that measures.
        enabled: False does nothing, for a random start.
    """

    def __init__(self, validator: Evaluator, enabled: bool = True) -> None:
        self.validator = validator
        self.enabled = enabled
        self._running = False
        validator.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def attach(self, engine: Workflow) -> None:
        """Validate at the start of `engine`, the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        """Validate, where nothing has been trained yet."""
        if not self.enabled or engine.state.iteration > 0:
            return
        logger.info("validation of the weights that training starts from, as epoch 0")
        self._running = True
        try:
            self.validator.run(0)
        finally:
            self._running = False

    def _end(self, engine: Workflow) -> None:
        if self._running:  # MONAI asks ignite for one epoch at least, which would be epoch 1 behind this one
            engine.terminate()
