"""One run at a time in an output folder, and one that writes a checkpoint."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import ignite.distributed as idist
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from boltzformer.errors import InputError


class RunLock:
    """Ignite handler: holds a lock beside each file or folder that a run writes; a second run is refused.

    List it first among the trainer's handlers. The lock ends with the run, also with one that was killed.

    Args:
        paths: folders (their lock is `.run.lock` inside) and files (`.<name>.lock` beside them).

    Raises:
        InputError: at the start, if another run holds one of them; names the holder.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.paths = [Path(path) for path in paths]
        self._held: list[FileLock] = []

    def attach(self, engine: Engine) -> None:
        """Hold the locks while `engine`, the trainer, runs."""
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._take)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _take(self, engine: Engine) -> None:
        for path in self.paths:
            self._take_one(path)

    def _take_one(self, path: Path) -> None:
        file = path.parent / f".{path.name}.lock" if path.suffix else path / ".run.lock"
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        holder = file.with_suffix(".holder")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._release()
            raise InputError(
                f"{path} is in use by {_read_holder(holder)}: wait for that run to end, or give this one another "
                "`output_dir` and `checkpoint`."
            ) from None
        self._held.append(lock)
        holder.write_text(json.dumps(_own_name()), encoding="utf-8")

    def _release(self, *_: object) -> None:
        while self._held:
            lock = self._held.pop()
            Path(lock.lock_file).with_suffix(".holder").unlink(missing_ok=True)
            lock.release()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._release()
        raise error  # ignite goes on where a handler of this event does not raise


def _own_name() -> dict[str, str | int]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"user": user, "host": socket.gethostname(), "process": os.getpid(), "since": started}


def _read_holder(file: Path) -> str:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return f"{content['user']} on {content['host']}, process {content['process']}, since {content['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
