"""Training, validation and test: by patient, the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from boltzformer.errors import InputError


@dataclass(frozen=True)
class Split:
    """How patients are shared out.

    Attributes:
        test_share: share of the patients for `test`, where the archive has no labelled test set of its own.
        validation_share: share of the rest for `validation` (the paper: 20 % of the training set).
        seed: of the draw.
    """

    test_share: float = 0.2
    validation_share: float = 0.2
    seed: int = 0

    def sections(self, patients: Mapping[str, str]) -> dict[str, str]:
        """Give each patient a section.

        Args:
            patients: patient to "test" where the archive says so, else to "".

        Returns:
            patient to "training", "validation" or "test".

        Raises:
            InputError: a share outside [0, 1), or too few patients for the sections asked for.
        """
        for name in ("test_share", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: expected a number in [0, 1), found {getattr(self, name)}.")
        chosen = {patient: "test" for patient, section in patients.items() if section == "test"}
        pool = sorted(set(patients) - set(chosen))
        order = [pool[i] for i in np.random.default_rng(self.seed).permutation(len(pool))]
        test = 0 if chosen else _count(self.test_share, len(order))
        validation = _count(self.validation_share, len(order) - test)
        if test + validation >= len(order):
            raise InputError(
                f"{len(order)} patient(s) cannot be split into training, validation and test; give more cases, or set "
                "the shares to 0."
            )
        for i, patient in enumerate(order):
            chosen[patient] = "test" if i < test else "validation" if i < test + validation else "training"
        return chosen


def _count(share: float, of: int) -> int:
    return max(round(share * of), 1) if share else 0
