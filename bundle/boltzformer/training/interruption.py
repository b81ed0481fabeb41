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
    """Notes the first signal; a second one of the same kind ends the process at once, as without this class.

    The loop looks at `signal`, saves, and says `obey`; the program's last step is `leave`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._obeyed: int | None = None
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

    def obey(self) -> None:
        """The run stops for the signal, or for another process's, which arrives here as SIGTERM."""
        self._obeyed = self.signal or signal.SIGTERM

    def leave(self) -> None:
        """End the process with the code of the signal that stopped the run; without one, do nothing.

        Raises:
            SystemExit: with 130 after SIGINT and 143 after SIGTERM.
        """
        if self._obeyed:
            raise SystemExit(128 + self._obeyed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        name = signal.Signals(number).name
        logger.warning("%s: the run saves its state after this step and ends; once more ends it at once", name)
        self.forget()
