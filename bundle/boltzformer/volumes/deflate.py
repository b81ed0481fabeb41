"""gzip, by ISA-L where it is installed (several times as fast), else by Python's own module.

Both read and write the same format and test the checksum; compressed bytes differ.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

igzip: Any
_isal_errors: tuple[type[Exception], ...]
try:
    igzip = import_module("isal.igzip")
    _isal_errors = (import_module("isal.isal_zlib").error,)
except ImportError:
    igzip, _isal_errors = None, ()

logger = logging.getLogger(__name__)

DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, ArithmeticError, zlib.error, *_isal_errors)
"""What reading a damaged file raises."""
BUFFER = 1 << 20


def open_gzip(path: Path) -> Any:
    """A .gz file to read from, as `gzip.open` gives it."""
    return _library().open(path, "rb")


def pack(file: BinaryIO) -> Any:
    """A stream whose bytes go to `file` compressed at the fastest useful level; a context manager.

    No name and no time inside: the same content gives the same bytes.
    """
    if _library() is gzip:
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0)
    return igzip.IGzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0)


@cache
def _library() -> Any:
    if igzip is None:
        logger.info("isal is not installed (extra `fast`): compressed files are read and written by slower code")
        return gzip
    return igzip
