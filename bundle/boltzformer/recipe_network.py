"""The network of a recipe: names and numbers to objects, by a fixed table of classes."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

# the modules whose classes a definition may name
from boltzformer.error_report import reason_of
from boltzformer.errors import InputError
from boltzformer.networks import boltzformer as _boltzformer  # noqa: F401
from boltzformer.networks.baselines import sam as _sam  # noqa: F401
from boltzformer.networks.definition import DEFINED_CLASSES, as_data
from boltzformer.recipe import Recipe, check_override
from boltzformer.settings import nearest

logger = logging.getLogger(__name__)

FREE = frozenset({"seed", "batch_invariant", "fold_semantic_map", "default_prompt"})
"""Arguments that a run may set as it likes: they are no part of what was trained."""
START_ONLY = frozenset({"weights", "pretrained"})
"""Arguments that say where a new network's weights come from; a checkpoint has its own."""
NETWORK_TYPES = ("BoltzFormer", "TextPromptedSam", "TextPromptedSam2")
FOLDER_TYPES = frozenset({"HuggingFaceTextEncoder"})
"""Classes whose `name` is a folder below the bundle's `models/`."""


def build_network(recipe: Recipe, **given: Any) -> nn.Module:
    """Build the network of a checkpoint, without its weights.

    Args:
        recipe: from `recipe_for`; where it holds no network, the definition of `configs/train.json` is the base.
        given: arguments that a config sets beside it, such as `image_size`, or parts of nested ones, such as
            `image_encoder={"name": ...}`.

    Returns:
        the network on the CPU.

    Raises:
        InputError: an argument that is not known, that conflicts with the recipe and is not among `recipe.override`, or
            that a layer refuses.
    """
    wanted = without_start(as_data(given))
    base = recipe.network
    if base is None:
        base = shipped_definition(recipe.bundle_root)
    else:
        _check_conflicts(wanted, base, recipe, "network_def")
    if base.get("type") not in NETWORK_TYPES:
        known = ", ".join(NETWORK_TYPES)
        raise InputError(f"{recipe.checkpoint}: its recipe describes a {base.get('type')!r}; known are {known}.")
    try:
        network = construct(_merge(base, wanted), recipe.bundle_root / "models")
    except InputError:
        raise
    except Exception as error:  # a number that some layer cannot take: only that layer knows
        source = "the network's definition" if recipe.network is None else f"{recipe.checkpoint}: its recipe's network"
        raise InputError(f"{source} cannot be built ({reason_of(error)}).") from error
    assert isinstance(network, nn.Module)
    return network


def construct(definition: Mapping[str, Any], models_dir: Path) -> Any:
    """Build what a definition describes. Only classes under `remember_definition` can be named.

    Args:
        definition: `type` and the arguments of its constructor; arguments may be definitions themselves.
        models_dir: where the folders of text encoders lie.

    Raises:
        InputError: an unknown type or argument; a folder outside `models_dir`.
    """
    arguments = dict(definition)
    kind = arguments.pop("type", None)
    cls = DEFINED_CLASSES.get(str(kind))
    if cls is None:
        raise InputError(f"a network's definition names the type {kind!r}; {nearest(str(kind), DEFINED_CLASSES)}")
    parameters = inspect.signature(cls).parameters
    for name in arguments:
        if name not in parameters or name in START_ONLY:
            known = [parameter for parameter in parameters if parameter not in START_ONLY]
            raise InputError(f"{kind} has no argument {name!r}; {nearest(name, known)}")
    if kind in FOLDER_TYPES:
        arguments["name"] = str(_inside(models_dir, str(arguments.get("name", ""))))
        arguments["pretrained"] = arguments.get("frozen", True)  # else its weights are part of the checkpoint
    built = {
        name: construct(value, models_dir) if isinstance(value, Mapping) else value for name, value in arguments.items()
    }
    return cls(**built)


def record_definition(network: Any, models_dir: Path) -> dict[str, Any]:
    """The definition of a network as its recipe holds it: nothing of this machine in it.

    Args:
        network: built from classes under `remember_definition`.
        models_dir: folders of text encoders are named relative to it.

    Raises:
        InputError: the network's class keeps no definition, or a text encoder's folder lies elsewhere.
    """
    definition = getattr(network, "definition", None)
    if not isinstance(definition, dict):
        raise InputError(f"{type(network).__name__} keeps no definition, so a checkpoint cannot say how to build it.")
    return _recorded(without_start(definition), models_dir)


def _recorded(definition: Mapping[str, Any], models_dir: Path) -> dict[str, Any]:
    result = {
        key: _recorded(value, models_dir) if isinstance(value, Mapping) else value for key, value in definition.items()
    }
    if definition.get("type") in FOLDER_TYPES:
        folder, root = Path(str(definition["name"])).resolve(), models_dir.resolve()
        if not folder.is_relative_to(root) or folder == root:
            raise InputError(
                f"text encoder {definition['name']!r} lies outside {models_dir}: copy its folder there, so that the "
                "checkpoint can be used elsewhere."
            )
        result["name"] = folder.relative_to(root).as_posix()
    return result


def shipped_definition(bundle_root: Path) -> dict[str, Any]:
    """The network of `configs/train.json`, as a definition; what refers to other keys keeps its default."""
    content = json.loads((bundle_root / "configs" / "train.json").read_text(encoding="utf-8"))
    return _plain(content["network_def"])


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    definition: dict[str, Any] = {"type": str(config["_target_"]).rsplit(".", 1)[-1]}
    for key, value in config.items():
        if isinstance(value, Mapping):
            definition[key] = _plain(value)
        elif not key.startswith("_") and not (isinstance(value, str) and value[:1] in ("@", "$")):
            definition[key] = value
    return without_start(definition)


def without_start(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition without the arguments that say where a new network's weights come from."""
    return {
        key: without_start(value) if isinstance(value, Mapping) else value
        for key, value in definition.items()
        if key not in START_ONLY
    }


def _check_conflicts(given: Mapping[str, Any], stated: Mapping[str, Any], recipe: Recipe, place: str) -> None:
    cls = DEFINED_CLASSES.get(str(stated.get("type")))
    defaults = {} if cls is None else inspect.signature(cls).parameters
    for name, value in given.items():
        there = stated.get(name, defaults[name].default if name in defaults else None)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            if "type" in value and value["type"] != there.get("type"):
                check_override(
                    f"{place}#{name}", value["type"], there.get("type"), str(recipe.checkpoint), recipe.override
                )
            else:
                _check_conflicts(value, there, recipe, f"{place}#{name}")
        elif name not in FREE and (name in stated or name in defaults) and _comparable(value) != _comparable(there):
            check_override(f"{place}#{name}", value, there, str(recipe.checkpoint), recipe.override)


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _merge(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in given.items():
        there = merged.get(name)
        if (
            isinstance(value, Mapping)
            and isinstance(there, Mapping)
            and value.get("type", there["type"]) == there["type"]
        ):
            merged[name] = _merge(there, value)
        elif value != {}:
            merged[name] = value
    return merged


def _inside(models_dir: Path, name: str) -> Path:
    """A folder below `models/`, whatever the name tries."""
    folder, root = (models_dir / name).resolve(), models_dir.resolve()
    if not name or not folder.is_relative_to(root) or folder == root:
        raise InputError(f"text encoder {name!r}: a recipe names a folder below {models_dir}, nothing else.")
    if not folder.is_dir():
        raise InputError(f"text encoder {name!r}: no folder {folder}; copy it there, it belongs to the checkpoint.")
    return folder
