"""Checkpoint files: written whole or not at all, read with one clear error when they do not fit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from boltzformer.bundle_folder import found_in_bundle
from boltzformer.errors import InputError
from boltzformer.output_files import remove_drafts, sync_folder, sync_tree, write_file

logger = logging.getLogger(__name__)

NETWORK_KEY = "network"
"""The entry of a training checkpoint that holds the network's weights."""
RECORD_FORMAT = 1
RECORD_NAME = "extra/recipe.json"
RECORD_KEY = "recipe"
LARGEST_RECORD = 16_000_000


def save_atomically(
    content: Mapping[str, Any], path: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint so that `path` holds either the earlier file or the whole new one.

    The bytes go to a hidden file beside `path`, reach the disk (`fsync`), and only then take its name. The file is
    what `torch.save` writes (or safetensors, by the ending), and beside the tensors it holds a JSON record: the
    SHA-256 of the content and, where given, the recipe. `torch.load` passes over it, `read_record` reads it.

    Args:
        content: a state dict, or a training checkpoint of tensors and plain values.
        path: where the file belongs; missing folders are made.
        recipe: what the network was trained with, as JSON can hold it (see `boltzformer.recipe`).

    Raises:
        InputError: if the file cannot be written, most often because the disk is full; `path` is then as it
            was.
    """
    path = Path(path)
    record = json.dumps({**(recipe or {}), "format": RECORD_FORMAT, "sha256": state_digest(content)}, indent=1)

    def write(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            file.write(safetensors.torch.save(dict(content), {RECORD_KEY: record}))
        else:
            torch.save(content, file)
            _append_record(file, record)

    try:
        if path.parent.is_dir():
            remove_drafts(path.parent)
        write_file(path, write)
    except InputError as error:
        if error.__cause__ is None:  # no file may be there, which space would not change
            raise
        raise InputError(_save_failure(path, error.__cause__)) from error
    except RuntimeError as error:  # torch's zip writer reports a failed write so
        raise InputError(_save_failure(path, error)) from error


def _append_record(file: BinaryIO, record: str) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/{RECORD_NAME}", record)


def state_digest(content: Any) -> str:
    """SHA-256 of tensors and plain values in nested dicts and lists; the same in every file format.

    Names, types, shapes and bytes count; the order of a dict's keys, and whether a list is a tuple, do not.

    Args:
        content: a state dict or a training checkpoint.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"tensor {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        digest.update(f"dict {len(value)};".encode())
        for key in sorted(value, key=repr):
            digest.update(f"{key!r};".encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)};".encode())
        for entry in value:
            _feed(digest, entry)
    else:
        digest.update(f"{value!r};".encode())


def _save_failure(path: Path, error: BaseException) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    free = shutil.disk_usage(folder).free / 1e6
    kept = "the earlier file is untouched" if path.exists() else "no file was left behind"
    return (
        f"cannot write checkpoint {path} ({_first_line(error)}; {free:.0f} MB free there); {kept}. "
        "Free some space or choose another folder, then start again; a training goes on with `--resume true`."
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def keep_previous(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Move a file that is about to be replaced by another run's aside, as `previous_<number>_<name>`.

    The number is the first free one from 001 on: what was kept once is never replaced.

    Args:
        path: the file; nothing happens where there is none.
        folder: where the kept file goes, `path`'s own folder by default.

    Returns:
        Where the file is kept now, or None.

    Raises:
        InputError: if it cannot be moved.
    """
    path = Path(path)
    if not path.is_file():
        return None
    target = Path(folder if folder is not None else path.parent)
    taken = (target / f"previous_{number:03d}_{path.name}" for number in count(1))
    kept = next(name for name in taken if not os.path.lexists(name))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, kept)
        sync_tree(kept)  # it may lie in another folder, or on another disk
        sync_folder(kept.parent)
    except OSError as error:
        raise InputError(
            f"cannot keep the earlier {path} as {kept} ({error}); make room or choose another output folder."
        ) from error
    return kept


def read_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the JSON record of a checkpoint (checksum and recipe), and nothing else of the file: no code can run.

    Args:
        path: a `.pt` or `.safetensors` file.

    Returns:
        the record as it stands there, unchecked; None where the file holds none.

    Raises:
        InputError: if the file is missing or the record cannot be read.
    """
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(RECORD_KEY)
        else:
            text = _record_of_zip(path)
        content = None if text is None else json.loads(text)
    except Exception as error:
        raise InputError(_damaged(path, error)) from error
    if content is not None and not isinstance(content, dict):
        raise InputError(_damaged(path, ValueError("its record is no JSON object")))
    return content


def _record_of_zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):  # torch's format before 1.6, or no checkpoint at all: reading it will tell
        return None
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.split("/", 1)[-1] == RECORD_NAME]
        if not names:
            return None
        if archive.getinfo(names[0]).file_size > LARGEST_RECORD:
            raise ValueError(f"its record has {archive.getinfo(names[0]).file_size} bytes")
        return archive.read(names[0]).decode("utf-8")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `.pt` checkpoint (tensors and plain values only, no code) or a `.safetensors` file to the CPU.

    What was read is compared with the file's own SHA-256; a file without one is read with a warning.

    Args:
        path: the file.

    Returns:
        What the file holds: a state dict, or a training checkpoint with the state dict under `network`.

    Raises:
        InputError: if the file is missing, truncated, changed since it was written, no checkpoint, or holds a
            weight that is not a number.
    """
    path = _existing(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(_damaged(path, error)) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict: name a checkpoint file.")
    record = read_record(path)
    if record is None:
        logger.info("%s carries no checksum: whether the file is whole cannot be told", path)
    elif record.get("sha256") != state_digest(content):
        raise InputError(
            f"{path} is damaged: its content is not what was written (SHA-256 differs); take a copy that is whole, "
            "or train again."
        )
    _check_finite(content, path)
    return content


def _existing(path: str | os.PathLike[str]) -> Path:
    path = found_in_bundle(path)
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {path}: train a network first (`python -m monai.bundle run training "
            "--config_file configs/train.json`) or name another file."
        )
    return path


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be read as a checkpoint ({_first_line(error)}): the file is truncated or of "
        "another kind; take a copy that is whole."
    )


def _check_finite(content: Any, path: Path, name: str = "") -> None:
    if isinstance(content, Tensor):
        if content.is_floating_point() and not bool(torch.isfinite(content).all()):
            raise InputError(
                f"{path} holds values that are no numbers (NaN or infinite, in {name}): training went wrong before it "
                "was written; take an earlier checkpoint."
            )
    elif isinstance(content, dict):
        for key, value in content.items():
            _check_finite(value, path, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            _check_finite(value, path, f"{name}[{index}]")


def network_state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The network's weights in what `read_checkpoint` gives: of a training's state, such as last.pt, its network's."""
    state = content.get(NETWORK_KEY)
    return state if isinstance(state, dict) else content


def load_weights(network: nn.Module, path: str | os.PathLike[str] | None, new_part: str | None = None) -> None:
    """Load a network's weights from its best checkpoint (plain state dict) or from a training checkpoint.

    Every key and shape must fit; nothing is loaded where one does not.

    Args:
        network: the network to fill.
        path: `model.pt`, `last.pt` or a `.safetensors` file; None leaves the network as it is.
        new_part: part of the network that a run is about to train, such as "existence"; where the file has nothing of
            it, it starts anew.

    Raises:
        InputError: if the file cannot be read or belongs to another architecture.
    """
    if path is None:
        return
    content = read_checkpoint(path)
    state = network_state(content)
    if new_part is not None and not any(key.startswith(f"{new_part}.") for key in state):
        own = {key: value for key, value in network.state_dict().items() if key.startswith(f"{new_part}.")}
        logger.info("%s has no %s: it starts anew", path, new_part)
        state = {**state, **own}
    check_fit(network, state, path)
    network.load_state_dict(state)
    logger.info("weights from %s", path)


def check_fit(network: nn.Module, state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Compare a state dict with a network, key by key.

    Args:
        network: the network that is to take the weights.
        state: name to tensor.
        path: the file they come from, for the message.

    Raises:
        InputError: if a key is missing, left over or of another shape; names the first of them and the cure.
    """
    own = network.state_dict()
    differences = [f"{key}: {_shape(own[key])} here, absent in the file" for key in own if key not in state]
    differences += [f"{key}: absent here, {_shape(state[key])} in the file" for key in state if key not in own]
    differences += [
        f"{key}: {_shape(own[key])} here, {_shape(state[key])} in the file"
        for key in own
        if key in state and _shape(own[key]) != _shape(state[key])
    ]
    if differences:
        raise InputError(
            f"{path} belongs to another network: {len(differences)} of {len(own)} weights do not fit, the "
            f"first are {'; '.join(differences[:3])}. Give the overlay it was trained with, for example "
            "--config_file \"['configs/inference.json','configs/network/tiny.json']\"."
        )


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
