"""What an object was built with, as plain data: so that a file can say it and another program can build it again."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

T = TypeVar("T", bound=type)

DEFINED_CLASSES: dict[str, type] = {}
"""Every class under `remember_definition`, by its name; the only ones that `build` calls."""


def remember_definition(cls: T) -> T:
    """Class decorator: each object keeps its constructor's arguments under `definition`.

    The definition is `{"type": class name, argument: value}` with defaults filled in. An argument that is itself
    such an object becomes its definition, so a network's holds those of its encoders.

    Args:
        cls: a class whose arguments are numbers, text, lists of them, or objects of such classes.
    """
    construct = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is not cls:  # a subclass is something else than its base
            return
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = list(bound.arguments.items())[1:]
        # not setattr: modules and frozen dataclasses have their own
        object.__setattr__(
            self, "definition", {"type": cls.__name__, **{name: as_data(value) for name, value in given}}
        )

    cls.__init__ = __init__  # type: ignore[misc]
    DEFINED_CLASSES[cls.__name__] = cls
    return cls


def as_data(value: Any) -> Any:
    """A value as JSON can hold it; objects with a definition become it."""
    definition = getattr(value, "definition", None)
    if isinstance(definition, dict):
        return definition
    if isinstance(value, list | tuple):
        return [as_data(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): as_data(entry) for key, entry in value.items()}
    return value
