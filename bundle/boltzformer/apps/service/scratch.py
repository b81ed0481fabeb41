"""The folder of a service's requests, which only its user can read; a lock in it tells whether that service lives."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from boltzformer.output_files import is_gone

_NAME = "boltzformer-serve-"
LOCK = ".lock"
_SECONDS = 10.0  # another service that starts holds a new lock for an instant, to find out


@dataclass(frozen=True)
class Scratch:
    """A folder in the system's temporary one.

    Attributes:
        folder: where requests go.
        lock: held until `delete`; a killed process loses it.
    """

    folder: Path
    lock: FileLock

    @classmethod
    def make(cls) -> Scratch:
        """Make a folder and hold it.

        Raises:
            OSError: the folder cannot be made.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"{_NAME}{os.getpid()}-"))
        lock = FileLock(folder / LOCK, thread_local=False)  # given back by the thread that stops the service
        lock.acquire(timeout=_SECONDS)
        return cls(folder, lock)

    def delete(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()


def sweep() -> None:
    """Delete what killed services of this user left behind.

    A number of a process alone does not tell: in a container the next service has the number of the one before it.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
        if not hasattr(os, "getuid") or folder.is_symlink() or folder.lstat().st_uid != os.getuid():
            continue
        if not (folder / LOCK).exists():  # of an older version, or being made
            match = re.match(rf"{_NAME}(\d+)-", folder.name)
            if match is not None and is_gone(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)
            continue
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
