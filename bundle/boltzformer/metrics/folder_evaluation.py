"""A folder of predictions against labels: every row, the summary with intervals, and the list of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from boltzformer.errors import InputError
from boltzformer.metrics.calibration import Calibration
from boltzformer.metrics.case_evaluation import CaseResult, EvaluationSettings, LabelledCase, evaluate_case
from boltzformer.metrics.froc import froc, lesion_auroc
from boltzformer.metrics.grids import Reader
from boltzformer.metrics.lesions import FALSE_POSITIVE, MATCHED, MISSED, summarise_lesions
from boltzformer.metrics.prediction_files import PredictionFolder
from boltzformer.metrics.size_buckets import PERCENT_EDGES, SMALL_BELOW_PERCENT, Buckets
from boltzformer.metrics.slice_report import summarise_slices
from boltzformer.metrics.statistics import clustered_interval
from boltzformer.metrics.tables import write_csv, write_json
from boltzformer.metrics.volume_metrics import summarise_volumes, surface_column

FILES = {"slices": "slices.csv", "volumes": "volumes.csv", "lesions": "lesions.csv"}


@dataclass
class Evaluation:
    """All rows of an evaluation and their summary."""

    settings: EvaluationSettings
    cases: int
    slices: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    lesions: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, Calibration] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(self, result: CaseResult) -> None:
        """Take in the rows of one case."""
        self.slices.extend(result.slices)
        self.volumes.extend(result.volumes)
        self.lesions.extend(result.lesions)
        self.failures.extend(result.failures)
        self.left_out.update(result.left_out)
        for name, collected in result.calibration.items():
            self.calibration.setdefault(name, Calibration()).merge(collected)

    def write(self, output_dir: str | Path) -> None:
        """Write ``slices.csv``, ``volumes.csv``, ``lesions.csv`` and ``summary.json``.

        Raises:
            InputError: where a file cannot be written.
        """
        folder = Path(output_dir)
        for name, file in FILES.items():
            write_csv(folder / file, getattr(self, name))
        write_json(folder / "summary.json", self.summary)


def evaluate_folder(
    cases: Sequence[LabelledCase],
    predictions: PredictionFolder,
    read: Reader,
    settings: EvaluationSettings | None = None,
    workers: int = 1,
    progress: Callable[[CaseResult], None] | None = None,
) -> Evaluation:
    """Score a folder of predictions.

    One case is in memory at a time for each worker. A case or object that cannot be scored is listed in
    ``failures``; so is a prediction whose label is not among the cases.

    Args:
        cases: label maps with the names of their objects.
        predictions: where the predicted masks are.
        read: reads a file, raising InputError where it cannot; a module-level function, for workers.
        settings: what is measured.
        workers: processes; 1 works in this one.
        progress: called with each case's result.

    Raises:
        InputError: where there is no case, or two cases share a name.
    """
    settings = settings or EvaluationSettings()
    names = Counter(case.name for case in cases)
    if not cases:
        raise InputError("there is no labelled case to evaluate")
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise InputError(f"two label maps share the name {repeated[0]}: evaluate their folders one by one")
    evaluation = Evaluation(settings, len(cases))
    score = partial(evaluate_case, predictions=predictions, settings=settings, read=read)
    for result in _map(score, cases, workers):
        evaluation.add(result)
        if progress is not None:
            progress(result)
    for path in predictions.without_label(name for case in cases for name in case.names):
        message = f"{path}: no label map of this name among the evaluated cases"
        evaluation.failures.append({"case": "", "object": "", "error": message})
    evaluation.summary = summarise(evaluation)
    return evaluation


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON summary of an evaluation."""
    settings = evaluation.settings
    scans = Counter(f"{row['dataset']} / {row['object']}" for row in evaluation.volumes)
    lesions = summarise_lesions(evaluation.lesions, scans, settings.lesions)
    lesions["froc"] = _scored_froc(evaluation.lesions, scans)
    lesions["score_auroc"] = lesion_auroc(evaluation.lesions)
    whole = Calibration()
    for collected in evaluation.calibration.values():
        whole.merge(collected)
    return {
        "cases": evaluation.cases,
        "patients": len({(row["dataset"], row["patient"]) for row in evaluation.slices}),
        "axis": settings.axis,
        "absent_is_negative": settings.absent_is_negative,
        "slices": summarise_slices(evaluation.slices, missed_below=settings.missed_below),
        "volumes": summarise_volumes(evaluation.volumes, settings.tolerances_mm, settings.missed_below),
        "lesions": lesions,
        "calibration": {
            "overall": whole.summary(),
            "objects": {name: c.summary() for name, c in sorted(evaluation.calibration.items())},
        }
        if evaluation.calibration
        else None,
        "intervals": all_intervals(evaluation),
        "left_out": dict(sorted(evaluation.left_out.items())),
        "failures": evaluation.failures,
    }


def _scored_froc(rows: Sequence[dict[str, Any]], scans: Mapping[str, int]) -> dict[str, Any] | None:
    """FROC over the objects whose predicted lesions all have a score; None where there is none."""
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in scans}
    for row in rows:
        groups[f"{row['dataset']} / {row['object']}"].append(row)
    scored = [
        name
        for name, part in groups.items()
        if any(r["score"] is not None for r in part)
        and all(r["score"] is not None or r["kind"] == MISSED for r in part)
    ]
    if not scored:
        return None
    pooled = [row for name in scored for row in groups[name]]
    return {"objects": sorted(scored), **froc(pooled, sum(scans[name] for name in scored))}


def all_intervals(evaluation: Evaluation) -> dict[str, Any]:
    """95 % bootstrap intervals clustered by patient: of the main numbers, by object and by size bucket."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.slices:
        groups.setdefault(f"{row['dataset']} / {row['object']}", []).append(row)
    buckets = Buckets(PERCENT_EDGES, " %")
    border = Buckets((SMALL_BELOW_PERCENT,), " %")
    missed_below = evaluation.settings.missed_below
    return {
        "overall": {
            **_slice_intervals(evaluation.slices, missed_below),
            **_volume_intervals(evaluation.volumes, evaluation.settings.tolerances_mm),
            **_lesion_intervals(evaluation.lesions),
            "false_positives_per_scan": _false_positive_interval(evaluation),
        },
        "objects": {name: _slice_intervals(rows, missed_below) for name, rows in sorted(groups.items())},
        "buckets_percent": _by_bucket(evaluation.slices, buckets, missed_below),
        "sizes": _by_bucket(evaluation.slices, border, missed_below),
    }


def _by_bucket(rows: Iterable[dict[str, Any]], buckets: Buckets, missed_below: float) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in buckets.names}
    for row in rows:
        index = buckets.index(row["area_percent"])
        if index is not None:
            groups[buckets.names[index]].append(row)
    return {name: _slice_intervals(part, missed_below) for name, part in groups.items()}


def _slice_intervals(rows: Iterable[dict[str, Any]], missed_below: float) -> dict[str, Any]:
    rows = list(rows)
    positive = [row for row in rows if row["dice"] is not None]
    negative = [row for row in rows if row["dice"] is None]
    return {
        "slice_dice": _mean(positive, [row["dice"] for row in positive]),
        "missed_share": _mean(positive, [float(row["dice"] < missed_below) for row in positive]),
        "slice_specificity": _mean(negative, [float(row["false_positive_percent"] == 0) for row in negative]),
    }


def _volume_intervals(rows: Iterable[dict[str, Any]], tolerances_mm: Sequence[float]) -> dict[str, Any]:
    positive = [row for row in rows if row["positive"]]
    surfaces = [surface_column(limit) for limit in tolerances_mm]
    found = {f"volume_{name}": _mean(positive, [row[name] for row in positive]) for name in ("dice", *surfaces)}
    finite = [row for row in positive if row["hd95_mm"] is not None]
    found["hd95_mm"] = _mean(finite, [row["hd95_mm"] for row in finite])
    return found


def _lesion_intervals(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(rows)
    patients = _patients(rows)
    matched = [float(row["kind"] == MATCHED) for row in rows]
    missed = [float(row["kind"] == MISSED) for row in rows]
    false = [float(row["kind"] == FALSE_POSITIVE) for row in rows]

    def ratio(tops: Iterable[float], bottoms: Iterable[float]) -> dict[str, Any]:
        return clustered_interval(list(tops), list(bottoms), patients)

    twice = [2 * m for m in matched]
    return {
        "lesion_sensitivity": ratio(matched, (m + n for m, n in zip(matched, missed, strict=True))),
        "lesion_precision": ratio(matched, (m + n for m, n in zip(matched, false, strict=True))),
        "lesion_f1": ratio(twice, (t + n + f for t, n, f in zip(twice, missed, false, strict=True))),
    }


def _false_positive_interval(evaluation: Evaluation) -> dict[str, Any]:
    """Over all searched (scan, object) pairs, also those without any lesion."""
    where = ("dataset", "case", "object")
    false = Counter(tuple(r[k] for k in where) for r in evaluation.lesions if r["kind"] == FALSE_POSITIVE)
    counts = [float(false[tuple(row[k] for k in where)]) for row in evaluation.volumes]
    return _mean(evaluation.volumes, counts)


def _mean(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> dict[str, Any]:
    return clustered_interval(values, [1.0] * len(values), _patients(rows))


def _patients(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [f"{row['dataset']} / {row['patient']}" for row in rows]


def _map(
    score: Callable[[LabelledCase], CaseResult], cases: Sequence[LabelledCase], workers: int
) -> Iterable[CaseResult]:
    if workers <= 1:
        yield from map(score, cases)
        return
    # Fresh processes: a forked copy of a process that has used threads (torch) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(score, cases)
