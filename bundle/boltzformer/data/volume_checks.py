"""Old name of `boltzformer.volumes.checks`, for code that still imports it from here."""

from boltzformer.volumes.checks import *  # noqa: F403
