"""A folder of predictions against labels: every row, the summary with intervals, and the list of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

from boltzformer.errors import InputError
from boltzformer.metrics.grids import Reader
from boltzformer.metrics.measures.cases import CaseResult, EvaluationSettings, LabelledCase, evaluate_case
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.summary.evaluation import summarise


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
    `failures`; so is a prediction whose label is not among the cases.

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
    if repeated and len({case.names[0] for case in cases}) == len(cases):
        # images of one name in folders of their own (pt_1/ct.nii.gz): only the labels tell the cases apart
        cases, repeated = [replace(case, name=case.names[0]) for case in cases], []
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


def _map(
    score: Callable[[LabelledCase], CaseResult], cases: Sequence[LabelledCase], workers: int
) -> Iterable[CaseResult]:
    if workers <= 1:
        yield from map(score, cases)
        return
    # Fresh processes: a forked copy of a process that has used threads (torch) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(score, cases)
