"""A folder of predictions against labels: every row, the summary with intervals, and the list of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

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
        InputError: where there is no case, two cases share a name, or a process was ended from outside.
    """
    settings = settings or EvaluationSettings()
    if not cases:
        raise InputError("there is no labelled case to evaluate")
    cases = told_apart(cases)
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


def told_apart(cases: Sequence[LabelledCase]) -> Sequence[LabelledCase]:
    """Cases whose names differ, each with the names of all: after their images, or after their labels.

    Images that share a name lie in folders of their own (pt_1/ct.nii.gz); then only the labels tell the cases apart.
    So they do for an image with a label map for each object, whose predictions go by the image's name still. Images of
    one label map, such as the sequences of an MR, are one patient's, whatever their names say.

    Raises:
        InputError: two cases share a name.
    """
    repeated = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if not repeated or len({case.names[0] for case in cases}) == len(cases):
        shared = {name for name in repeated if len({case.image for case in cases if case.name == name}) > 1}
        named = [_by_label(case, shared) for case in cases] if repeated else cases
        others = frozenset([*shared, *(case.name for case in named)])
        return [replace(case, others=case.others | others) for case in _of_one_patient(named)]
    first, second = [case.image or case.label for case in cases if case.name == repeated[0]][:2]
    raise InputError(
        f"{first} and {second} share the name {repeated[0]}, and not all label maps have names of their own: rename "
        "them, or evaluate one at a time."
    )


def _by_label(case: LabelledCase, shared: AbstractSet[str]) -> LabelledCase:
    """A case under its label's name; so is the patient, for whom an image's name stood that several images share."""
    label = case.names[0]
    return replace(case, name=label, patient=label if case.patient in shared & {case.name} else case.patient)


def _of_one_patient(cases: Sequence[LabelledCase]) -> list[LabelledCase]:
    """Cases of one label map under one patient, for intervals draw patients as independent of each other."""
    known_as: dict[tuple[str, str], tuple[str, str]] = {}

    def patient_of(case: LabelledCase) -> tuple[str, str]:
        patient = case.dataset, case.patient
        while patient in known_as:
            patient = known_as[patient]
        return patient

    firsts: dict[tuple[str, Path], LabelledCase] = {}
    for case in cases:
        own, first = patient_of(case), patient_of(firsts.setdefault((case.dataset, case.label), case))
        if own != first:
            known_as[own] = first
    return [replace(case, patient=patient_of(case)[1]) for case in cases]


def _map(
    score: Callable[[LabelledCase], CaseResult], cases: Sequence[LabelledCase], workers: int
) -> Iterable[CaseResult]:
    if workers <= 1:
        yield from map(score, cases)
        return
    # Fresh processes: a forked copy of a process that has used threads (torch) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(score, cases)
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} processes was ended from outside while it scored, most likely for want of memory: "
                "give fewer --workers"
            ) from error
