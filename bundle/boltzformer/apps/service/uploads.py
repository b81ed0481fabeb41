"""A multipart request -> files under names of our own, in bounded memory.

Starlette's form parser keeps a file in memory or in a temporary file of no bounded size, and every file of a DICOM
series stays open. Here each part goes straight to a file, and nothing that the client wrote becomes part of a path.
"""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.errors import MessageError
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from boltzformer.apps.service.limits import Limits
from boltzformer.errors import InputError
from boltzformer.volumes.names import NIFTI_SUFFIXES, volume_suffix

CASE = "scan"
"""What every upload is called here."""
LARGEST_FIELD = 4096
LARGEST_HEADER = 8192
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_ENCODED = re.compile(r"(=\?[\w-]+\?[bq]\?[^?]*\?=\s*)+", re.IGNORECASE)
_WHAT = "give one NIfTI file (.nii, .nii.gz), or the files of one DICOM series"


class TooLarge(InputError):
    """The request is larger than the service allows."""


@dataclass
class Upload:
    """What came in.

    Attributes:
        folder: holds the files and nothing else.
        fields: name -> the values that came under it, in order.
        names: our name of each file -> the client's, for messages to that client.
        size: bytes of the request.
    """

    folder: Path
    fields: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    size: int = 0

    @property
    def volume(self) -> Path:
        """The NIfTI file, or the folder of the DICOM files.

        Raises:
            InputError: there is none, or more than one, or they are archives.
        """
        niftis = [name for name in self.names if volume_suffix(name) in NIFTI_SUFFIXES]
        if not self.names:
            raise InputError(f"no file came with the request; {_WHAT}.")
        theirs = list(self.names.values())
        if not niftis and all(name.lower().endswith(_ARCHIVES) for name in theirs):  # beside slices it is passed over
            raise InputError(f"{theirs[0]}: an archive is not unpacked; {_WHAT}.")
        if niftis and len(self.names) > 1:
            raise InputError(f"{len(self.names)} files came, a NIfTI file among them; {_WHAT}.")
        return self.folder / niftis[0] if niftis else self.folder

    def for_client(self, message: str) -> str:
        """A message without our paths: each file by the client's own name."""
        told = message.replace(str(self.folder) + "/", "")
        for ours, theirs in self.names.items():
            if ours in told:
                literal = theirs.replace("\\", r"\\")  # a name is no pattern
                told = re.sub(rf"(?<![\w.-]){re.escape(ours)}(?![\w-])", literal, told)
        return " ".join(told.replace(str(self.folder), "the upload").split())


async def receive_upload(stream: AsyncIterator[bytes], content_type: str, folder: Path, limits: Limits) -> Upload:
    """Read a request's body.

    Args:
        stream: the body in pieces.
        content_type: the request's header.
        folder: where the files go; empty.
        limits: how much may come.

    Returns:
        the fields and files.

    Raises:
        TooLarge: more bytes, files or a longer field than `limits` allow.
        InputError: no multipart form, a damaged one, or a file of a kind that is not taken.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InputError("expected a form with files (multipart/form-data).")
    upload = Upload(folder)
    parts = _Parts(upload, limits)
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks(), max_size=float("inf"))
        async for piece in stream:
            upload.size += len(piece)
            if upload.size > limits.upload_mb * 1e6:
                raise TooLarge(f"the upload is larger than {limits.upload_mb:g} MB, which the service takes at most.")
            parser.write(piece)
        parser.finalize()
    except MultipartParseError:
        raise InputError("the form is damaged or cut (multipart/form-data).") from None
    finally:
        parts.close()
    if not parts.ended:
        raise InputError("the form is cut: its end did not come.")
    return upload


class _Parts:
    """Takes the parser's calls and fills an `Upload`."""

    def __init__(self, upload: Upload, limits: Limits) -> None:
        self.upload, self.limits = upload, limits
        self.ended = False
        self._patterns: dict[str, str] = {}
        self._header, self._value = b"", b""
        self._headers: dict[Any, Any] = {}
        self._file: BinaryIO | None = None
        self._field: tuple[str, bytearray] | None = None

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        """End the part that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._field is not None:
            name, value = self._field
            self._field = None
            try:
                self.upload.fields.setdefault(name, []).append(value.decode("utf-8"))
            except UnicodeDecodeError:
                raise InputError(f"the field {_shown(name)!r} is no UTF-8 text.") from None

    def _end(self) -> None:
        self.ended = True

    def _begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > LARGEST_HEADER:
            raise TooLarge("a header of the form is too long.")

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            if sum(len(values) for values in self.upload.fields.values()) >= 100:
                raise TooLarge("the form has over 100 fields.")
            self._field = (name, bytearray())
            return
        theirs = re.split(r"[/\\]", _meant(options[b"filename"]))[-1]
        if theirs.startswith(".") or not theirs:  # such as .DS_Store; its bytes are passed over
            return
        if len(self.upload.names) >= self.limits.files:
            raise TooLarge(f"over {self.limits.files} files came, which the service takes at most.")
        ours = self._our_name(theirs)
        self.upload.names[ours] = _shown(theirs)
        self._file = open(self.upload.folder / ours, "xb")  # noqa: SIM115 - closed where the part ends

    def _our_name(self, theirs: str) -> str:
        """`scan.nii.gz`, or a letter for each kind of name and a number, as the check for damaged slices needs."""
        suffix = volume_suffix(theirs)
        if suffix in NIFTI_SUFFIXES:
            name = CASE + suffix
            if name in self.upload.names:
                raise InputError(f"several NIfTI files came; {_WHAT}.")
            return name
        if suffix:
            raise InputError(f"{_shown(theirs)}: files of this kind are not taken; {_WHAT}.")
        ending = ".dcm" if theirs.lower().endswith(_DICOM_ENDINGS) else ""
        kind = self._patterns.setdefault(re.sub(r"\d+", "#", theirs.lower()), _letters(len(self._patterns)))
        return f"{kind}{len(self.upload.names):06d}{ending}"

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
        elif self._field is not None:
            self._field[1].extend(data[start:end])
            if len(self._field[1]) > LARGEST_FIELD:
                raise TooLarge(f"the field {_shown(self._field[0])!r} is longer than {LARGEST_FIELD} bytes.")


def _letters(number: int) -> str:
    """0, 1, ... as a, b, ..., z, ba, bb, ..."""
    text = ""
    while True:
        number, rest = divmod(number, 26)
        text = string.ascii_lowercase[rest] + text
        if not number:
            return text


def _meant(name: bytes) -> str:
    """A file's name as its client knows it: some, such as .NET's, send other letters than ASCII's as e-mail does."""
    text = name.decode("utf-8", "replace")
    if _ENCODED.fullmatch(text):
        with contextlib.suppress(MessageError, LookupError, ValueError):
            return str(make_header(decode_header(text)))
    return text


def _shown(name: str) -> str:
    """A client's name as it may stand in a message: printable, on one line, not long."""
    plain = "".join(character if character.isprintable() else "?" for character in name)
    return plain if len(plain) <= 100 else plain[:99] + "…"
