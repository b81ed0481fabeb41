"""Many volumes, one after another: one that fails does not stop the others, and each is accounted for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

from ignite.engine import Engine, Events
from monai.data import DataLoader, list_data_collate
from monai.engines import SupervisedEvaluator
from torch.utils.data import Dataset, Subset

from boltzformer.error_report import find_input_error, reason_of
from boltzformer.errors import InputError, PartialFailure
from boltzformer.inference.masks import check_distinct
from boltzformer.manifest import DONE, FAILED, FILE_NAME, SKIPPED, STOPPED_BEFORE, Entry, Manifest
from boltzformer.output_files import check_apart, check_folder, check_target, recorded_writes
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.write import is_ours

logger = logging.getLogger(__name__)

_STOPPED_IN = "was not finished: the run was stopped in the middle of it"


class CaseByCase:
    """Runs an evaluator on each item of a dataset by itself and reports the failures at the end.

    Before the first volume it makes sure that the output folder can be written and that no result would replace an
    input or a file of another origin.

    Args:
        evaluator: a MONAI evaluator whose handlers save the results; its data loader is replaced for each case.
        dataset: items with `image`, `case` (a name for messages) and perhaps `series_uid`.
        handlers: those of the evaluator that write; each tells `planned_files(case)`.
        manifest: gets an entry for each item, and is written at the end, which an interrupt (Ctrl-C) may be.
        skipped: why each file that was left out is none of the items, by file.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        dataset: Dataset,
        handlers: Sequence[Any] = (),
        manifest: Manifest | None = None,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.dataset = dataset
        self.handlers = [handler for handler in handlers if hasattr(handler, "planned_files")]
        self.manifest = manifest
        self.skipped = dict(skipped or {})
        self.failures: dict[str, str] = {}
        self._raised: Exception | None = None
        evaluator.add_event_handler(Events.EXCEPTION_RAISED, self._note)

    def run(self) -> None:
        """Work through the dataset.

        Raises:
            InputError: before anything is done, if a result must not or cannot be written.
            PartialFailure: at the end, if a case failed; lists all of them with their reasons.
        """
        items = cast(Any, self.dataset).data
        self._check_outputs(items)
        began = time.perf_counter()
        for index, item in enumerate(items):
            try:
                self._run_one(index, item, len(items))
            except KeyboardInterrupt:
                for left in items[index + 1 :]:
                    self._account_for(left, SKIPPED, STOPPED_BEFORE)
                self._write_manifest()
                raise
        done = len(items) - len(self.failures)
        logger.info("%d of %d volumes segmented in %.1f s", done, len(items), time.perf_counter() - began)
        lost = self._write_manifest()
        if self.failures or lost:
            listed = "".join(f"\n  {name}: {reason}" for name, reason in self.failures.items())
            raise PartialFailure(f"{len(self.failures)} of {len(items)} volumes failed:{listed}{lost}")

    def _check_outputs(self, items: Sequence[Mapping[str, Any]]) -> None:
        folders = {handler.output_dir for handler in self.handlers}
        if self.manifest is not None:
            folders.add(Path(self.manifest.output_dir))
        inputs = [Path(item["image"]) for item in items]
        for folder in folders:
            check_folder(folder)
            check_apart(folder, inputs)
        planned = [path for item in items for handler in self.handlers for path in handler.planned_files(item["case"])]
        if self.manifest is not None:
            planned.append(self.manifest.path)
        check_distinct(planned)
        for path in planned:
            check_target(path, inputs, None if path.name == FILE_NAME else is_ours)

    def _run_one(self, index: int, item: Mapping[str, Any], count: int) -> None:
        name, path = str(item["case"]), str(item["image"])
        began = time.perf_counter()
        self._raised = None
        loader = DataLoader(Subset(self.dataset, [index]), batch_size=1, collate_fn=list_data_collate)
        self.evaluator.data_loader = loader
        self.evaluator.state.epoch_length = len(cast(Sized, loader))
        with recorded_writes() as written:
            try:
                self.evaluator.run()
            except KeyboardInterrupt:
                self._account_for(item, FAILED, _STOPPED_IN, written, time.perf_counter() - began)
                raise
        self.evaluator.state.batch = self.evaluator.state.output = None  # or two volumes are in memory at once
        seconds = time.perf_counter() - began
        reason = "" if self._raised is None else reason_of(self._raised)
        if reason and find_input_error(self._raised) is None:
            reason = f"{path}: {reason}"  # an InputError names its file itself
        if reason:
            self.failures[name] = reason
            logger.error("volume %d/%d, %s: failed, %s", index + 1, count, name, reason)
        else:
            logger.info("volume %d/%d, %s: %.1f s", index + 1, count, name, seconds)
        self._account_for(item, FAILED if reason else DONE, reason, written, seconds)

    def _account_for(
        self, item: Mapping[str, Any], status: str, reason: str, written: Sequence[Path] = (), seconds: float = 0.0
    ) -> None:
        if self.manifest is None:
            return
        path = str(item["image"])
        files = () if status == SKIPPED else _files_of(Path(path), str(item.get("series_uid", "")))
        self.manifest.add(Entry(str(item["case"]), path, status, reason, files, tuple(written), seconds))

    def _write_manifest(self) -> str:
        """Empty, or a line that says why the account could not be written."""
        if self.manifest is None:
            return ""
        for path, reason in self.skipped.items():
            self.manifest.add(Entry(Path(path).name, path, SKIPPED, reason))
        try:
            logger.info("account of the run: %s", self.manifest.write())
        except InputError as error:
            return f"\n  {error}"
        return ""

    def _note(self, engine: Engine, error: BaseException) -> None:
        # ignite goes on where an EXCEPTION_RAISED handler does not raise; an interrupt by the user must end the run
        if not isinstance(error, Exception):
            raise error
        logger.debug("failure", exc_info=error)
        self._raised = self._raised or error


def _files_of(path: Path, series_uid: str) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path,)
    try:
        return find_series(path, "warn", series_uid).files
    except InputError:  # a damaged series: what lies there
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
