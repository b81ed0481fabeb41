"""Checkpoint files: written whole or not at all, read with one clear error when they do not fit."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

NETWORK_KEY = "network"
"""The entry of a training checkpoint that holds the network's weights."""


def save_atomically(content: object, path: str | os.PathLike[str]) -> None:
    """Write `content` with `torch.save` so that `path` holds either the earlier file or the whole new one.

    The bytes go to a hidden file beside `path`, reach the disk (`fsync`), and only then take its name.

    Args:
        content: anything `torch.save` takes.
        path: where the file belongs; missing folders are made.

    Raises:
        InputError: if the file cannot be written, most often because the disk is full; `path` is then as it
            was.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        _flush_folder(path.parent)
    # torch's zip writer reports a failed write as RuntimeError
    except (OSError, RuntimeError) as error:
        raise InputError(_save_failure(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system allows a folder to be opened."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _save_failure(path: Path, error: Exception) -> str:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    free = shutil.disk_usage(folder).free / 1e6
    kept = "the earlier file is untouched" if path.exists() else "no file was left behind"
    return (
        f"cannot write checkpoint {path} ({_first_line(error)}; {free:.0f} MB free there); {kept}. "
        "Free some space or choose another folder, then go on with `--resume true`."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def keep_previous(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Move a file that is about to be replaced by another run's aside, as `previous_<name>`.

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
    kept = Path(folder if folder is not None else path.parent) / f"previous_{path.name}"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, kept)
    except OSError as error:
        raise InputError(
            f"cannot keep the earlier {path} as {kept} ({error}); make room or choose another output folder."
        ) from error
    return kept


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `.pt` checkpoint (tensors and plain values only, no code) or a `.safetensors` file to the CPU.

    Args:
        path: the file.

    Returns:
        What the file holds: a state dict, or a training checkpoint with the state dict under `network`.

    Raises:
        InputError: if the file is missing, truncated, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {path}: train a network first (`python -m monai.bundle run training "
            "--config_file configs/train.json`) or name another file."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}): the file is truncated or of "
            "another kind; take a copy that is whole."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict: name a checkpoint file.")
    return content


def load_weights(network: nn.Module, path: str | os.PathLike[str] | None) -> None:
    """Load a network's weights from its best checkpoint (plain state dict) or from a training checkpoint.

    Every key and shape must fit; nothing is loaded where one does not.

    Args:
        network: the network to fill.
        path: `model.pt`, `last.pt` or a `.safetensors` file; None leaves the network as it is.

    Raises:
        InputError: if the file cannot be read or belongs to another architecture.
    """
    if path is None:
        return
    content = read_checkpoint(path)
    state = content[NETWORK_KEY] if isinstance(content.get(NETWORK_KEY), dict) else content
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
