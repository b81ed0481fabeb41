"""The log of a run, in the run's folder."""

from __future__ import annotations

import logging

import ignite.distributed as idist
from ignite.engine import Engine
from monai.handlers import LogfileHandler


class RunLog(LogfileHandler):
    """MONAI's `LogfileHandler` for what this package logs, where MONAI's own writes the engine's messages alone.

    A resumed run goes on in the same file. Only the first process of a distributed run writes.

    Args:
        output_dir: the run's folder, made if needed.
        filename: of the log.
    """

    def __init__(self, output_dir: str, filename: str = "log.txt") -> None:
        super().__init__(output_dir, filename, formatter="%(asctime)s %(levelname)s %(message)s")

    def attach(self, engine: Engine) -> None:
        """Log from the start of `engine` to its end."""
        if idist.get_rank() > 0:
            return
        super().attach(engine)
        self.logger = logging.getLogger("boltzformer")
