"""The one exception that a user's mistake raises."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from a user: a file, a prompt or a setting.

    The message is one sentence or two that name the file (or the setting) and the cure, fit to be shown as it is.
    """


class PartialFailure(InputError):
    """Some of what was asked for failed; the rest is done. A command ends with code 1 then, otherwise with 2."""
