"""Ctrl-C and SIGTERM as a wish to stop, which the run fulfils when its state is safe."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the first signal; a second one of the same kind ends the process at once, as without this class."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._earlier: dict[int, Any] = {}

    def watch(self) -> None:
        """Take over SIGINT and SIGTERM; only the main thread can, in others nothing changes."""
        if threading.current_thread() is threading.main_thread() and not self._earlier:
            self._earlier = {number: signal.signal(number, self._note) for number in SIGNALS}

    def forget(self) -> None:
        """Give the signals back."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        name = signal.Signals(number).name
        logger.warning("%s: the run saves its state after this step and ends; once more ends it at once", name)
        self.forget()
