"""Many volumes, one after another: one that fails does not stop the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Sized
from typing import Any, cast

from ignite.engine import Engine, Events
from monai.data import DataLoader, list_data_collate
from monai.engines import SupervisedEvaluator
from torch.utils.data import Dataset, Subset

from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError

logger = logging.getLogger(__name__)


class CaseByCase:
    """Runs an evaluator on each item of a dataset by itself and reports the failures at the end.

    Args:
        evaluator: a MONAI evaluator whose handlers save the results; its data loader is replaced for each case.
        dataset: items with `case`, a name for messages.
    """

    def __init__(self, evaluator: SupervisedEvaluator, dataset: Dataset) -> None:
        self.evaluator = evaluator
        self.dataset = dataset
        self.failures: dict[str, Exception] = {}
        self._raised: Exception | None = None
        evaluator.add_event_handler(Events.EXCEPTION_RAISED, self._note)

    def run(self) -> None:
        """Work through the dataset.

        Raises:
            InputError: at the end, if a case failed; lists all of them with their reasons.
        """
        names = [str(item["case"]) for item in cast(Any, self.dataset).data]
        began = time.perf_counter()
        for index, name in enumerate(names):
            self._run_one(index, name, len(names))
        done = len(names) - len(self.failures)
        logger.info("%d of %d volumes segmented in %.1f s", done, len(names), time.perf_counter() - began)
        if self.failures:
            listed = "".join(f"\n  {name}: {_reason(error)}" for name, error in self.failures.items())
            raise InputError(f"{len(self.failures)} of {len(names)} volumes failed:{listed}")

    def _run_one(self, index: int, name: str, count: int) -> None:
        began = time.perf_counter()
        self._raised = None
        loader = DataLoader(Subset(self.dataset, [index]), batch_size=1, collate_fn=list_data_collate)
        self.evaluator.data_loader = loader
        self.evaluator.state.epoch_length = len(cast(Sized, loader))
        self.evaluator.run()
        self.evaluator.state.batch = self.evaluator.state.output = None  # or two volumes are in memory at once
        seconds = time.perf_counter() - began
        if self._raised is None:
            logger.info("volume %d/%d, %s: %.1f s", index + 1, count, name, seconds)
        else:
            self.failures[name] = self._raised
            logger.error("volume %d/%d, %s: failed, %s", index + 1, count, name, _reason(self._raised))

    def _note(self, engine: Engine, error: BaseException) -> None:
        # ignite goes on where an EXCEPTION_RAISED handler does not raise; an interrupt by the user must end the run
        if not isinstance(error, Exception):
            raise error
        if find_input_error(error) is None:
            logger.debug("unexpected failure", exc_info=error)
        self._raised = self._raised or error


def _reason(error: Exception) -> str:
    mistake = find_input_error(error)
    return str(mistake) if mistake is not None else f"{type(error).__name__}: {error}"
