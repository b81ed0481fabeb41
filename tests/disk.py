"""A disk that may lose power: what was not brought to it (`fsync`) would be gone."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class Disk:
    """Listens to `os` while files below a folder are written, and says what a power cut could have spoiled.

    Args:
        root: the folder.

    Attributes:
        problems: a name that was taken before its bytes, or the entries of its folders, were on the disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[str] = []
        self._safe: dict[int, str] = {}  # inode -> what of it is on the disk

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs."""
        true_sync, true_replace, true_rename = os.fsync, os.replace, os.rename

        def fsync(file: Any) -> None:
            true_sync(file)
            number = file if isinstance(file, int) else file.fileno()
            self._safe[os.fstat(number).st_ino] = _content(Path(f"/proc/self/fd/{number}").resolve())

        def renaming(true: Any) -> Any:
            def rename(source: Any, target: Any, **more: Any) -> None:
                self.problems += [f"{Path(target).name} before {path}" for path in self._unsafe(Path(source))]
                true(source, target, **more)

            return rename

        with (
            mock.patch.object(os, "fsync", fsync),
            mock.patch.object(os, "replace", renaming(true_replace)),
            mock.patch.object(os, "rename", renaming(true_rename)),
        ):
            yield

    def lost(self) -> list[str]:
        """What a power cut now would spoil or take away; drafts and locks, which are hidden, do not count."""
        return self.problems + [str(path) for path in self._unsafe(self.root)]

    def _unsafe(self, top: Path) -> list[Path]:
        below = [path for path in top.rglob("*") if not _is_hidden(path.relative_to(top))]
        paths = [top, *below]
        return [path for path in paths if path.exists() and self._safe.get(path.stat().st_ino) != _content(path)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _content(path: Path) -> str:
    """Of a file its checksum, of a folder its names."""
    if stat.S_ISDIR(path.stat().st_mode):
        return "|".join(sorted(name for name in os.listdir(path) if not name.startswith(".")))
    return hashlib.sha256(path.read_bytes()).hexdigest()
