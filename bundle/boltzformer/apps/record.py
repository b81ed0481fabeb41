"""`record.json` in an output folder: what was asked of each case, and the checksum of every file written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzformer.apps.findings import Finding
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.manifest import sha256_of
from boltzformer.output_files import check_target, sync_folder, write_bytes
from boltzformer.volumes.spacing import SPACING_KNOWN

if TYPE_CHECKING:
    from boltzformer.apps.batch import Request

NAME = "record.json"
FORMAT = 1


def request_digest(case: Mapping[str, Any], request: Request, files: Iterable[Path]) -> str:
    """Checksum of everything that decides a case's results: the input's bytes, prompts, weights and settings.

    Args:
        case: from `find_volumes`.
        request: what is asked.
        files: the input's.

    Returns:
        64 hexadecimal digits.
    """
    content = {
        "input": [sha256_of(file) for file in files],
        "case": {key: str(case.get(key, "")) for key in ("modality", "body_part", "series_uid")}
        | {key: str(case[key]) for key in ("window", SPACING_KNOWN) if key in case},
        "prompts": [[prompt.name, prompt.text] for prompt in request.prompts],
        "formats": sorted(request.formats),
        "algorithm": [request.algorithm.name, request.algorithm.version, request.algorithm.weights_sha256],
        "uneven_spacing": request.uneven_spacing,
        "settings": dict(request.settings),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


class BatchRecord:
    """The record of an output folder.

    Args:
        folder: holds the record, or will.

    Raises:
        InputError: the folder's `record.json` is not one of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self.entries: dict[str, dict[str, Any]] = {}
        if os.path.lexists(self.path):
            content = read_json(self.path, "record")
            try:
                if content["boltzformer_record"] != FORMAT:
                    raise ValueError(f"format {content['boltzformer_record']}")
                self.entries = {str(case): _checked(entry) for case, entry in content["cases"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.path}: is no record of this program, or damaged ({type(error).__name__}: {error}); move it "
                    "away or name another output folder."
                ) from error

    def settle(self, request: str, result: Mapping[str, Any], draft: Path, protected: Iterable[Path]) -> None:
        """Write down a finished case and move its files from the folder they were drafted in to their place.

        The record comes first: after a kill between the two, the files count as this program's own.

        Args:
            request: from `request_digest`.
            result: with `case`, `files`, `findings` and `seconds`.
            draft: holds the files.
            protected: inputs, which no file may take the place of.

        Raises:
            InputError: a file's place is taken by an input, or by a file that was not written here or was changed
                since; nothing was moved.
        """
        for name in result["files"]:
            check_target(self.folder / name, protected, self.wrote)
        entry = {key: value for key, value in result.items() if key != "case"}
        entry["files"] = {name: sha256_of(draft / name) for name in result["files"]}
        case = str(result["case"])
        earlier = self._earlier(case)
        self._store({**self.entries, case: {"request": request, **entry, "earlier": earlier}})
        for name in result["files"]:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft / name, target)
            sync_folder(target.parent)
        left = {name: digests for name, digests in earlier.items() if name not in entry["files"]}
        self._store({**self.entries, case: {"request": request, **entry, "earlier": left}})

    def _earlier(self, case: str) -> dict[str, list[str]]:
        """Files of a case's former results, by name: masks of other prompts stay, and stay known as ours."""
        former = self.entries.get(case, {})
        known = {name: list(digests) for name, digests in former.get("earlier", {}).items()}
        for name, digest in former.get("files", {}).items():
            known[name] = sorted({*known.get(name, []), digest})
        return known

    def _store(self, entries: dict[str, dict[str, Any]]) -> None:
        content = {"boltzformer_record": FORMAT, "cases": entries}
        write_bytes(self.path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        self.entries = entries

    def is_intact(self, case: str) -> bool:
        """Whether every file of a case is there as it was written."""
        return all(self._is(name, digest) for name, digest in self.entries[case]["files"].items())

    def wrote(self, path: Path) -> bool:
        """Whether a file in the folder is one that an earlier run wrote and nobody changed since."""
        name = str(path.relative_to(self.folder))
        return any(self._is(name, digest) for case in self.entries for digest in self._earlier(case).get(name, []))

    def _is(self, name: str, digest: str) -> bool:
        path = self.folder / name
        # os.path takes names that no file system takes for names of nothing
        return os.path.isfile(path) and not path.is_symlink() and sha256_of(path) == digest


def _checked(entry: Any) -> dict[str, Any]:
    """An entry of a record, as `settle` writes it.

    Raises:
        ValueError: something in it is of another kind; or KeyError, TypeError or AttributeError.
    """
    digests = [entry["request"], *entry["files"].values()]
    for listed in entry.get("earlier", {}).values():
        digests += [*listed]
    if not all(isinstance(digest, str) for digest in digests):
        raise ValueError("a checksum that is no text")
    for finding in entry["findings"]:
        Finding.from_dict(finding)
    if not isinstance(entry["seconds"], int | float):
        raise ValueError("seconds that are no number")
    return dict(entry)
