"""How far a volume is, on a terminal and in a log file."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class SliceProgress:
    """A bar on a terminal; in a log file a line each half minute.

    Args:
        total: slices of the volume.
        done: of them, before the clock started.
        shown: False draws and logs nothing.
    """

    INTERVAL = 30.0

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.total, self.before, self.count = total, done, done
        self.shown = shown
        self.bar: Any = tqdm(total=total, initial=done, unit="slice", leave=False, disable=None if shown else True)
        self.began = self.last_line = time.perf_counter()

    def __enter__(self) -> SliceProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def done(self, slices: int) -> None:
        """Say that so many more slices of the volume are done."""
        now = time.perf_counter()
        self.count += slices
        if self.shown and self.bar.disable and now - self.last_line >= self.INTERVAL:
            self.last_line = now
            each = (now - self.began) / (self.count - self.before)  # the first were computed before the clock started
            left = timedelta(seconds=round(each * (self.total - self.count)))
            logger.info("slice %d/%d, %.2f s a slice, volume ends in %s", self.count, self.total, each, left)
        self.bar.update(slices)
