"""Which patches a query attends to: one module for each rule, found by itself.

A new rule is one new module here and one overlay that names its class under `network_def#attention`. Read `rule`,
then `boltzmann`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .boltzmann import Boltzmann
from .full import Full
from .rule import AttentionRule
from .threshold import Threshold

__all__ = ["AttentionRule", "Boltzmann", "Full", "Threshold"]

# a checkpoint names its rule by the class alone: every rule must be known before one is read
for _entry in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_entry.name}")
