"""The Boltzmann draw without annealing, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from .boltzmann import Boltzmann


@dataclass(frozen=True)
class ConstantTemperature(Boltzmann):
    """The paper's rule with tau_l = tau_0 in every layer: what remains of it when the temperature does not fall."""

    def temperature_of(self, layer: int) -> float:
        """See `Boltzmann`."""
        return self.base_temperature
