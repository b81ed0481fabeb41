"""All rows of an evaluation, and the files that hold them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer.metrics.files import write_csv, write_json
from boltzformer.metrics.measures.calibration import Calibration
from boltzformer.metrics.measures.cases import CaseResult, EvaluationSettings
from boltzformer.metrics.measures.rows import LesionRow, SliceRow, VolumeRow

FILES = {"slices": "slices.csv", "volumes": "volumes.csv", "lesions": "lesions.csv"}


@dataclass
class Evaluation:
    """All rows of an evaluation and their summary."""

    settings: EvaluationSettings
    cases: int
    slices: list[SliceRow] = field(default_factory=list)
    volumes: list[VolumeRow] = field(default_factory=list)
    lesions: list[LesionRow] = field(default_factory=list)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    without_rows: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(self, result: CaseResult) -> None:
        """Take in the rows of one case."""
        self.slices.extend(result.slices)
        self.volumes.extend(result.volumes)
        self.lesions.extend(result.lesions)
        self.failures.extend(result.failures)
        if not result.slices and not result.failures:
            self.without_rows.append(result.case)
        self.left_out.update(result.left_out)
        for name, collected in result.calibration.items():
            self.calibration.setdefault(name, Calibration()).merge(collected)

    def write(self, output_dir: str | Path) -> None:
        """Write `slices.csv`, `volumes.csv`, `lesions.csv` and `summary.json`.

        Raises:
            InputError: where a file cannot be written.
        """
        folder = Path(output_dir)
        for name, file in FILES.items():
            write_csv(folder / file, getattr(self, name))
        write_json(folder / "summary.json", self.summary)
