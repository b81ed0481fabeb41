"""Warnings of this package as data, for those who do not see its log: a client of the service, an annotator."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import boltzformer

_OF_THE_MACHINE = f"{boltzformer.__name__}.networks.attention"
"""Warns once in a process how fast it is, which no one request is concerned with."""


class _Listener(logging.Handler):
    """Keeps the warnings of one thread, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        of_request = record.thread == self.thread and not record.name.startswith(_OF_THE_MACHINE)
        if of_request and message not in self.messages:
            self.messages.append(message)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Listen to what this package warns of, in this thread, while a block runs.

    The log gets the same lines as without.

    Returns:
        the messages, in order; grows in the block.
    """
    package = logging.getLogger(boltzformer.__name__)
    listener = _Listener()
    package.addHandler(listener)
    try:
        yield listener.messages
    finally:
        package.removeHandler(listener)
