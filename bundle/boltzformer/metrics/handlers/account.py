"""The account of an evaluation that runs as a MONAI evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from boltzformer.manifest import DONE, SKIPPED, Entry, Manifest
from boltzformer.metrics.handlers.rows import RowHandler
from boltzformer.output_files import check_folder
from boltzformer.volumes.names import case_name


class EvaluationAccount:
    """Ignite handler: writes `manifest.json`, an entry for each case of the list that was to be scored.

    A case without a row is skipped, with the reason. One that cannot be read ends the run before it begins, so no entry
    has failed. Under torch.distributed process 0 writes.

    Args:
        cases: as `load_cases` gives them.
        rows: the handler whose rows say what was scored.
        manifest: gets the entries; its folder is tried before the work.
    """

    def __init__(self, cases: Sequence[Mapping[str, Any]], rows: RowHandler, manifest: Manifest) -> None:
        self.cases = list(cases)
        self.rows = rows
        self.manifest = manifest

    def attach(self, engine: Engine) -> None:
        """Account for `engine`, a MONAI evaluator, whose metrics `rows` is one of."""
        engine.add_event_handler(Events.STARTED, lambda engine: check_folder(self.manifest.output_dir))
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            return
        scored = {(row["dataset"], row["case"]) for row in self.rows.rows}
        for case in self.cases:
            name = case_name(case["image"])
            known = (case["dataset"], name) in scored
            reason = "" if known else "no slice of it holds an object, and none was drawn as a negative"
            files = tuple(Path(case[key]) for key in ("image", "label") if case.get(key))
            self.manifest.add(Entry(name, str(case["image"]), DONE if known else SKIPPED, reason, files))
        self.manifest.write()
