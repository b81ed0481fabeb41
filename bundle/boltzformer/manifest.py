"""The account of a run: what was asked for, and what became of each of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boltzformer.bundle_folder import found_in_bundle
from boltzformer.errors import InputError
from boltzformer.output_files import relative_to, write_bytes

FILE_NAME = "manifest.json"
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
STOPPED_BEFORE = "was not done: the run was stopped before"
"""Why a case was skipped that an interrupt (Ctrl-C) left out."""
_PACKAGES = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "pydicom", "timm")


@dataclass(frozen=True)
class Entry:
    """What became of one thing that was asked for.

    Attributes:
        name: of the case.
        path: file or folder, as it was asked for.
        status: "done", "failed" or "skipped".
        reason: why it was not done; empty where it was.
        inputs: the files that were read.
        outputs: the files that were written.
        seconds: that it took.
    """

    name: str
    path: str
    status: str
    reason: str = ""
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in (DONE, FAILED, SKIPPED):
            raise ValueError(f"status is {self.status!r}: expected {DONE}, {FAILED} or {SKIPPED}")


@dataclass
class Manifest:
    """Account of one run of inference, evaluation or preparation.

    Args:
        command: what ran.
        output_dir: where the file goes; paths in it are relative to this folder where they can be.
        weights: file of the network's weights; None where none was used.
        settings: what the run was told, JSON values; others are written as text.
    """

    command: str
    output_dir: str | os.PathLike[str]
    weights: str | os.PathLike[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list, init=False)
    outputs: list[Path] = field(default_factory=list, init=False)
    """Files that belong to the whole run and to no entry, such as a report."""
    _began: float = field(default_factory=time.time, init=False)

    def add(self, entry: Entry) -> None:
        """Note what became of one thing; each thing that was asked for is noted once."""
        self.entries.append(entry)

    def of(self, status: str) -> list[Entry]:
        """The entries with a status."""
        return [entry for entry in self.entries if entry.status == status]

    @property
    def path(self) -> Path:
        """Where the account is written."""
        return Path(self.output_dir) / FILE_NAME

    @property
    def exit_code(self) -> int:
        """0 where nothing failed, 1 where something did; 2 is for a run that could not start."""
        return 1 if self.of(FAILED) else 0

    def content(self) -> dict[str, Any]:
        """The account as JSON holds it; `done` + `failed` + `skipped` = `asked`."""
        return {
            "command": self.command,
            "began": datetime.fromtimestamp(self._began, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._began, 3),
            "asked": len(self.entries),
            **{status: len(self.of(status)) for status in (DONE, FAILED, SKIPPED)},
            "entries": [self._entry(entry) for entry in self.entries],
            **({"outputs": self._files(self.outputs)} if self.outputs else {}),
            "weights": None if self.weights is None else self._files([found_in_bundle(self.weights)]),
            "settings": {key: _plain(value, self.output_dir) for key, value in self.settings.items()},
            "versions": _versions(),
        }

    def write(self) -> Path:
        """Write `manifest.json` whole or not at all; an earlier run's stays under a numbered name.

        Raises:
            InputError: it cannot be written.
        """
        path = self.path
        text = json.dumps(self.content(), indent=4, ensure_ascii=False, default=str) + "\n"
        if path.is_file():
            number = 1
            while path.with_name(f"manifest.{number}.json").exists():
                number += 1
            try:
                os.rename(path, path.with_name(f"manifest.{number}.json"))
            except OSError as error:
                raise InputError(f"cannot keep the earlier {path} ({error}); name another output_dir.") from error
        # a name of a file that is no UTF-8 becomes what JSON writes for it, \udcfc
        return write_bytes(path, text.encode("utf-8", "backslashreplace"))

    def _entry(self, entry: Entry) -> dict[str, Any]:
        return {
            "name": entry.name,
            "path": relative_to(entry.path, self.output_dir),
            "status": entry.status,
            **({"reason": entry.reason} if entry.reason else {}),
            "seconds": round(entry.seconds, 3),
            "inputs": self._files(entry.inputs),
            "outputs": self._files(entry.outputs),
        }

    def _files(self, paths: Iterable[Path]) -> list[dict[str, Any]]:
        return [
            {"path": relative_to(path, self.output_dir), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in dict.fromkeys(paths)
            if path.is_file()
        ]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any, folder: str | os.PathLike[str]) -> Any:
    if isinstance(value, Path):
        return relative_to(value, folder)
    if isinstance(value, str) and os.path.isabs(value):
        return relative_to(value, folder)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, folder) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry, folder) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "bundle": _bundle_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _bundle_version() -> str:
    try:
        metadata = Path(__file__).resolve().parents[1] / "configs" / "metadata.json"
        return str(json.loads(metadata.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"
