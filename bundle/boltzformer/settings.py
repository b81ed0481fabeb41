"""A misspelt setting is refused with the nearest name: MONAI would add it to the config, where nothing reads it."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigParser, run

from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError

CONFIGS = ("train", "evaluate", "inference")
_DOWN = re.compile("#|::")
_REFERENCE = re.compile(r"@([A-Za-z]\w*)")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of the known ones, or all of them where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}."


def check_keys(
    config: Mapping[str, Any], keys: Iterable[str], source: str = "", also: Collection[str] = frozenset()
) -> None:
    """Refuse keys that a config does not have.

    Below a component of this package an argument counts that the config leaves at its default. What lies below a
    reference, an expression or another library's component cannot be seen and passes.

    Args:
        config: content of a config.
        keys: as on MONAI's command line, such as "window" or "network_def#dim".
        source: where they come from, the beginning of the message.
        also: further names at the top.

    Raises:
        InputError: names the key and the nearest one.
    """
    for key in keys:
        place: Any = config
        above = "the config"
        for step in _DOWN.split(key.removeprefix("+")):
            if isinstance(place, Mapping) and step in place:
                place = place[step]
            elif isinstance(place, Sequence) and not isinstance(place, str):
                if not (step.isdigit() and int(step) < len(place)):
                    raise InputError(f"{source}{key}: {above} has {len(place)} entries, and no {step!r}.")
                place = place[int(step)]
            else:
                known = None if step.startswith("_") else _names(place)
                if known is not None and step not in known and not (place is config and step in also):
                    raise InputError(f"{source}{key}: {above} has no key {step!r}; {nearest(step, known)}")
                break
            above = repr(step)


def _names(place: Any) -> list[str] | None:
    """Keys that may stand in a place of a config, None where any may."""
    if not isinstance(place, Mapping) or not place:
        return None
    target = place.get("_target_")
    if target is None:
        return list(place)
    found = locate(str(target)) if str(target).startswith("boltzformer.") else None
    if not callable(found):
        return None
    parameters = inspect.signature(found).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def check_run(files: Sequence[str | Path], keys: Iterable[str], source: str = "--") -> None:
    """Check what overlays and overrides change.

    An overlay may add a key that it refers to itself, and one file may serve several configs, so a key of any of the
    bundle's three counts as known.

    Args:
        files: configs, each on top of those before.
        keys: that are set on top of all.
        source: what stands before such a key.

    Raises:
        InputError: see `check_keys`.
    """
    config: dict[str, Any] = {}
    for number, file in enumerate(files):
        if number:
            content = ConfigParser.load_config_file(file)  # by itself, its keys not yet taken apart
            added = set(_REFERENCE.findall(json.dumps(content)))
            check_keys(_retargeted(config, content), content, f"{file}: ", also=_shipped_keys() | added)
        config = _read(files[: number + 1])
    check_keys(config, keys, source, also=_shipped_keys())


def _retargeted(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config whose components are those of an overlay, so that the overlay's keys are arguments of these."""
    targets = {key: value for key, value in overlay.items() if _DOWN.split(key)[-1] == "_target_"}
    if not targets:
        return config
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.update(targets)
    return parser.get()


def check_command_line(arguments: Sequence[str] | None = None) -> None:
    """Check the command line of `python -m monai.bundle run`; the bundle's configs call it in their `run` list.

    A program that was started in another way has no such command line: nothing happens.

    Args:
        arguments: the command line, `sys.argv` by default.

    Raises:
        InputError: see `check_run`.
    """
    words = list(sys.argv if arguments is None else arguments)
    if not words[0].replace("\\", "/").endswith("monai/bundle/__main__.py") or words[1:2] != ["run"]:
        return
    options = _options(words[2:])
    keys = [*options]
    if options.get("args_file"):
        keys += ConfigParser.load_config_file(options["args_file"])
    own = inspect.signature(run).parameters
    check_run(_listed(options.get("config_file", "")), [key for key in keys if key not in own])


@cache
def _shipped_keys() -> frozenset[str]:
    return frozenset(key for name in CONFIGS for key in _read([bundle_folder() / "configs" / f"{name}.json"]))


def _options(words: Sequence[str]) -> dict[str, str]:
    """Options of a command line as `fire` reads them: `--name value` and `--name=value`."""
    options: dict[str, str] = {}
    for number, word in enumerate(words):
        if re.match("--?[A-Za-z+]", word):
            name, equals, value = word.lstrip("-").partition("=")
            following = words[number + 1] if number + 1 < len(words) else ""
            options[name.replace("-", "_")] = value if equals else following
    return options


def _listed(text: str) -> list[str]:
    """The files of `--config_file`: a Python list, or one path."""
    if not text.startswith("["):
        return [text] if text else []
    return [str(file) for file in ast.literal_eval(text)]


def _read(files: Sequence[str | Path]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI has said already what it says of every config
        return dict(ConfigParser.load_config_files([str(file) for file in files]))


def usable_device(device: str | torch.device) -> torch.device:
    """A device that can be used.

    Args:
        device: such as "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: it is unknown, or not there.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--device {str(device)!r}: cannot be used ({reason}).") from None
    return found


def check_seed_and_device(seed: Any, device: Any) -> None:
    """Check the two settings that torch would refuse with a page of traceback.

    Args:
        seed: should be a whole number from 0 to 2^32 - 1.
        device: see `usable_device`.

    Raises:
        InputError: one of them cannot be used.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed!r}: expected a whole number from 0 to {2**32 - 1}.")
    usable_device(device)
