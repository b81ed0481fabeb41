"""What a user downloaded, as one list of files: a folder, a plain tar or a zip."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from boltzformer.errors import InputError
from boltzformer.output_files import sync_tree

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error)


class Source(ABC):
    """Files below a root, each with its size; contents are read when they are asked for.

    Attributes:
        path: the folder or archive.
        sizes: relative name (with `/`) to size in bytes. Files of the Finder (`._name`, `.DS_Store`), which the
            Decathlon's archives hold, and names that lead out of the archive are left out.
    """

    def __init__(self, path: Path, sizes: dict[str, int]) -> None:
        self.path = path
        self.sizes = {name: size for name, size in sorted(sizes.items()) if _wanted(name)}
        self._lock = threading.Lock()

    @abstractmethod
    def _open(self, name: str) -> IO[bytes]:
        """Open one file for reading."""

    def close(self) -> None:  # noqa: B027, a folder has nothing to close
        """Close the archive."""

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Read one file; one at a time, since the files of an archive share its position.

        Raises:
            InputError: there is no such file, or the archive is damaged there.
        """
        if name not in self.sizes:
            raise InputError(f"{self.path}: holds no {name}; it may be half downloaded or half unpacked.")
        with self._lock:
            try:
                with self._open(name) as stream:
                    yield stream
            except _DAMAGED as error:
                raise InputError(f"{self.path}: damaged at {name} ({error}); download it again.") from error

    def copy(self, name: str, target: Path) -> None:
        """Copy one file out, in full or not at all.

        Raises:
            InputError: see `opened`; also a file that is shorter than the archive's list says.
        """
        part = target.with_name(f".{target.name}.part")
        try:
            with self.opened(name) as stream, part.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            if part.stat().st_size != self.sizes[name]:
                raise InputError(
                    f"{self.path}: {name} has {part.stat().st_size} of {self.sizes[name]} bytes; download it again."
                )
            sync_tree(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one file as a JSON object.

        Raises:
            InputError: see `opened`; also a file that is no JSON object.
        """
        try:
            with self.opened(name) as stream:
                content = json.loads(stream.read().decode("utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path}: {name} cannot be read as JSON ({error}).") from error
        if not isinstance(content, dict):
            raise InputError(f"{self.path}: {name} holds no JSON object.")
        return content

    def find_one(self, filename: str) -> str:
        """The one file of this name nearest to the root.

        Raises:
            InputError: none, or several at the same depth (several datasets in one folder).
        """
        found = sorted((n for n in self.sizes if PurePosixPath(n).name == filename), key=lambda n: n.count("/"))
        if not found:
            raise InputError(f"{self.path}: holds no {filename}; give the dataset's archive or its own folder.")
        first = [name for name in found if name.count("/") == found[0].count("/")]
        if len(first) > 1:
            raise InputError(f"{self.path}: holds several datasets ({', '.join(first[:5])}); give one of them.")
        return first[0]

    def require(self, names: Iterable[str], who: str) -> None:
        """Check that files are there.

        Raises:
            InputError: some are missing, with their number and the first of them.
        """
        names = list(names)
        missing = [name for name in names if name not in self.sizes]
        if missing:
            raise InputError(
                f"{self.path}: {len(missing)} of {len(names)} files that {who} are missing, the first {missing[0]}; "
                "the download or unpacking is incomplete."
            )


class FolderSource(Source):
    """A folder on the disk."""

    def __init__(self, path: Path) -> None:
        files = [file for file in _below(path) if file.is_file()]
        super().__init__(path, {file.relative_to(path).as_posix(): file.stat().st_size for file in files})

    def _open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")


def _below(root: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder itself, through links too: `imagesTr` may lie on another disk."""
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder).resolve()
        names[:] = [name for name in names if not here.is_relative_to(Path(folder, name).resolve())]  # goes round
        yield from (Path(folder, name) for name in files)


class TarSource(Source):
    """A tar without compression, as the Decathlon hands its tasks out."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = tarfile.open(path, "r:")  # noqa: SIM115, open until close()
            self._members = {m.name.removeprefix("./"): m for m in self._archive.getmembers() if m.isfile()}
        except tarfile.TarError as error:
            raise InputError(f"{path}: damaged or half downloaded ({error}); download it again.") from error
        super().__init__(path, {name: member.size for name, member in self._members.items()})

    def _open(self, name: str) -> IO[bytes]:
        stream = self._archive.extractfile(self._members[name])
        assert stream is not None  # only regular files are listed
        return stream

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


class ZipSource(Source):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise InputError(f"{path}: damaged or half downloaded ({error}); download it again.") from error
        super().__init__(path, {i.filename: i.file_size for i in self._archive.infolist() if not i.is_dir()})

    def _open(self, name: str) -> IO[bytes]:
        return self._archive.open(name)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def open_source(path: str | Path) -> Source:
    """List a folder, a tar without compression, or a zip.

    Args:
        path: what was downloaded.

    Returns:
        its files; the caller closes it.

    Raises:
        InputError: there is nothing there, it is of another kind (a compressed tar cannot be read at random: unpack
            it), or its list cannot be read because it is damaged or half downloaded.
    """
    path = Path(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        raise InputError(f"{path}: no such archive or folder.")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path}: is empty; download it again.")
    if path.suffix == ".zip" or head.startswith(b"PK"):
        return ZipSource(path)
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise InputError(f"{path}: is compressed as a whole; unpack it (tar -xf) and give the folder.")
    if path.suffix == ".tar" or head[257:262] == b"ustar":
        return TarSource(path)
    raise InputError(f"{path}: is neither a folder nor a tar or zip archive.")


def _wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith("._") or part in {".DS_Store", "__MACOSX"} for part in parts)
    return not hidden and ".." not in parts and not name.startswith("/")
