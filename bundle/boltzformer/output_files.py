"""The one place that decides what may be written where, and how: whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from boltzformer.errors import InputError

DRAFT_SUFFIX = ".draft"
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32] or "host"
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_recorded: ContextVar[list[Path] | None] = ContextVar("recorded", default=None)


def write_file(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    protected: Iterable[str | os.PathLike[str]] = (),
    ours: Callable[[Path], bool] | None = None,
) -> Path:
    """Write a file so that `path` holds either what it held before or the whole new content, also after a power cut.

    The bytes go to a draft in the same folder, whose name cannot be foreseen and which follows no link; they reach the
    disk, and only then take the name.

    Args:
        path: where the file belongs; missing folders are made.
        write: gets a binary stream and writes the content.
        protected: inputs that must not be written over.
        ours: tells whether an existing file was written by this program; one that was not stays. None replaces any
            file that is not protected.

    Returns:
        `path`.

    Raises:
        InputError: `path` is an input or a file of another origin, or cannot be written.
    """
    path = Path(path)
    check_target(path, protected, ours)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_draft(path, write)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}); free some space or name another output_dir.") from error
    recorded = _recorded.get()
    if recorded is not None:
        recorded.append(path)
    return path


def write_bytes(
    path: str | os.PathLike[str],
    content: bytes,
    protected: Iterable[str | os.PathLike[str]] = (),
    ours: Callable[[Path], bool] | None = None,
) -> Path:
    """Write bytes as `write_file` does."""
    return write_file(path, lambda file: file.write(content), protected, ours)


def check_target(
    path: str | os.PathLike[str],
    protected: Iterable[str | os.PathLike[str]] = (),
    ours: Callable[[Path], bool] | None = None,
) -> None:
    """Refuse a path that must not be written; nothing is written or made.

    Args:
        path: where a file is to be written.
        protected: inputs; they are recognised by path, through links to them or to their folders, as hard links, and
            where the names differ in case only (one file on some file systems).
        ours: see `write_file`.

    Raises:
        InputError: `path` is one of `protected`, or holds something that this program did not write.
    """
    path = Path(path)
    place = _place(path)
    for source in protected:
        if _place(Path(source)) == place or _same_file(path, Path(source)):
            raise InputError(f"{path}: is an input ({source}), which is never written over; name another output_dir.")
    if path.is_dir() and not path.is_symlink():
        raise InputError(f"{path}: is a folder where a file is to be written; name another output_dir.")
    if ours is not None and (path.is_symlink() or (path.exists() and not ours(path))):
        raise InputError(
            f"{path}: is there already and was not written by this program, or was changed since; move it away or name "
            "another output_dir."
        )


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Make an output folder and try to write into it, before any work is spent.

    Drafts that a killed process left there are removed.

    Args:
        folder: made if needed.

    Returns:
        the folder.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"cannot write into {folder} ({error}); name another output_dir.") from error
    remove_drafts(folder)
    return folder


def check_apart(folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output folder in which results would lie among inputs, to be taken for inputs the next time.

    Args:
        folder: of the results, which is there.
        inputs: files, or folders of DICOM series.

    Raises:
        InputError: an input lies directly in the folder, or is the folder.
    """
    for source in map(Path, inputs):
        places = {source.parent, source} if source.is_dir() else {source.parent}
        if any(_same_file(Path(folder), place) for place in places):
            raise InputError(f"{folder}: holds the input {source}; name an output_dir of its own.")


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes of this machine left in a folder and in its folders."""
    for draft in [*folder.glob(f".*{DRAFT_SUFFIX}"), *folder.glob(f"*/.*{DRAFT_SUFFIX}")]:
        if _is_orphan(draft):
            draft.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring a folder's entries to the disk: a name that was given or taken there outlasts a power cut."""
    with contextlib.suppress(PermissionError):  # not every system lets a folder be opened
        _sync(folder)


def sync_tree(path: str | os.PathLike[str]) -> None:
    """Bring a file, or a folder with all that is below it, to the disk, before it takes its name.

    Args:
        path: links in it are not followed.

    Raises:
        OSError: the disk is full or broken.
    """
    if not os.path.isdir(path):
        _sync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if not os.path.islink(file):
                _sync(file)
        sync_folder(folder)


def _sync(path: str | os.PathLike[str]) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def recorded_writes() -> Iterator[list[Path]]:
    """Collect the paths that `write_file` writes inside the block, in order, for an account of a run.

    Yields:
        the list that grows.
    """
    written: list[Path] = []
    token = _recorded.set(written)
    try:
        yield written
    finally:
        _recorded.reset(token)


def relative_to(path: object, folder: str | os.PathLike[str]) -> str:
    """A path as seen from a folder, so that notes can move with what they speak of; other text as it is."""
    text = str(path)
    if not Path(text).is_absolute() and not Path(text).exists():
        return text
    try:
        return Path(os.path.relpath(text, folder)).as_posix()
    except ValueError:  # another drive
        return text


def _write_draft(path: Path, write: Callable[[BinaryIO], object]) -> None:
    # mkstemp creates exclusively and follows no link
    handle, draft = tempfile.mkstemp(prefix=f".{_HOST}-{os.getpid()}-", suffix=DRAFT_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o666 & ~_UMASK)
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)
    sync_folder(path.parent)


def _is_orphan(draft: Path) -> bool:
    """Whether the process that began a draft on this machine is gone."""
    match = re.fullmatch(rf"\.{_HOST}-(\d+)-.*{re.escape(DRAFT_SUFFIX)}", draft.name)
    return match is not None and is_gone(int(match[1]))


def is_gone(process: int) -> bool:
    """Whether no process of this machine has a number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _place(path: Path) -> str:
    """The true folder of a path and its name, without regard to case."""
    return str(path.parent.resolve() / path.name).casefold()


def _same_file(path: Path, source: Path) -> bool:
    try:
        return os.path.samefile(path, source)
    except OSError:
        return False
