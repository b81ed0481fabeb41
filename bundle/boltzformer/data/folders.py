"""Folders that appear whole or not at all, and one writer at a time."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from boltzformer.errors import InputError
from boltzformer.output_files import sync_folder, sync_tree

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST}


def folder_lock(target: str | Path) -> FileLock:
    """Make the lock of a folder's writers, between processes of one machine; a killed process loses it.

    Args:
        target: the folder to be written; its parent is created.

    Returns:
        a lock file beside the folder, not yet acquired.

    Raises:
        InputError: the parent cannot be created or written.
    """
    target = Path(target)
    with explained_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # FileLock waits for ever where no file can be made, so make one first
        tempfile.TemporaryFile(dir=target.parent).close()
    return FileLock(target.parent / f".{target.name}.lock")


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Fill a temporary sibling of a folder, which takes its place when the block ends without an error.

    All of it reaches the disk before it takes the name. The caller holds `folder_lock(target)`. What a killed writer
    left behind is removed first; an older folder at `target` is replaced.

    Args:
        target: the folder to create or replace.

    Yields:
        the temporary folder to fill.

    Raises:
        InputError: the disk is full, or the folder may not be written.
    """
    target = Path(target)
    prefix = f".{target.name}.tmp-"
    with explained_os_errors(target):
        for left in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            os.chmod(temporary, 0o755)
            filled = temporary / "new"
            filled.mkdir()
            yield filled
            sync_tree(filled)
            if target.exists():
                target.rename(temporary / "old")
            filled.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explained_os_errors(target: Path) -> Iterator[None]:
    """Turn what the disk refuses while `target` is written (no room, no right) into an `InputError` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(f"{target}: the disk is full; free some space or choose another folder.") from error
        if error.errno in _REFUSED:
            raise InputError(f"{target}: cannot be written ({error.strerror}); choose another folder.") from error
        raise
