"""What both evaluation commands do once masks and labels are there: score, write, print, report failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from boltzformer.errors import InputError
from boltzformer.manifest import DONE, FAILED, SKIPPED, Entry, Manifest
from boltzformer.metrics.evaluation import evaluate_folder, told_apart
from boltzformer.metrics.files import write_json
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.catalogue import Catalogue
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show.report import write_report
from boltzformer.metrics.show.terminal import print_comparison, print_evaluation
from boltzformer.metrics.summary.comparison import compare_with, read_earlier
from boltzformer.output_files import check_folder, recorded_writes
from boltzformer.volumes.checks import read_volume

COMPARISON = "comparison.json"


@contextmanager
def settings_as_input() -> Iterator[None]:
    """Turn the ValueError of a setting outside its range into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def check_comparison(compare_to: Path | None, output_dir: Path) -> None:
    """Refuse, before any work is spent, what cannot be compared with, and to write over what can.

    Raises:
        InputError: both are one folder, or there are no results to compare with.
    """
    if compare_to is None:
        return
    if compare_to.resolve() == output_dir.resolve():
        raise InputError(f"{output_dir}: holds the results to compare with; name another --output-dir.")
    read_earlier(compare_to, Catalogue())


def score(
    cases: list[LabelledCase],
    folder: PredictionFolder,
    settings: EvaluationSettings,
    workers: int,
    output_dir: Path,
    compare_to: Path | None,
    pictures: int,
    title: str,
    lost: Mapping[str, str] | None = None,
    weights: Path | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate, write all files and the account of the run, and print the tables.

    Args:
        cases: to score.
        folder: their predictions.
        settings: what is measured.
        workers: processes.
        output_dir: of all files.
        compare_to: folder of an earlier evaluation.
        pictures: of the worst cases.
        title: of the report.
        lost: what could not be segmented, image to reason, for lists and account.
        weights: that made the predictions, where they are known.
        made_with: settings that made the predictions, where they are known; `calibrate` asks the account for them.

    Raises:
        InputError: cases share a name; or, once all the rest is written, the earlier evaluation is of other cases.
    """
    console = Console()
    cases = list(told_apart(cases))
    told: dict[str, Any] = {
        "predictions": folder.folder,
        "axis": settings.axis,
        "absent_is_negative": settings.absent_is_negative,
    }
    told |= made_with or {}
    manifest = Manifest("evaluation", check_folder(output_dir), weights, told)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=len(cases))
        found = evaluate_folder(
            cases, folder, read_volume, settings, workers, progress=lambda _: progress.advance(task)
        )
    lost = lost or {}
    found.failures[:0] = [{"case": Path(image).name, "object": "", "error": why} for image, why in lost.items()]
    with recorded_writes() as manifest.outputs:
        found.write(output_dir)
        comparison, refusal = _compared(found, compare_to)
        if comparison is None:  # one of an earlier run would be taken for that of these numbers
            (output_dir / COMPARISON).unlink(missing_ok=True)
        else:
            write_json(output_dir / COMPARISON, comparison)
        page = output_dir / "report.html"
        report = write_report(page, found, cases, folder, read_volume, comparison, pictures, title)
    print_evaluation(found.summary, console)
    if comparison is not None:
        print_comparison(comparison, console)
    account_for(manifest, cases, found, lost)
    console.print(f"Report: {report}\nAccount of the run: {manifest.write()}", soft_wrap=True)
    if refusal is not None:
        _list_failures(found.failures)
        raise refusal
    return found


def _compared(found: Evaluation, earlier: Path | None) -> tuple[dict[str, Any] | None, InputError | None]:
    """The comparison, or why there is none: a matter for the end, for it takes nothing from the numbers."""
    try:
        return (None if earlier is None else compare_with(found, earlier)), None
    except InputError as error:
        return None, error


def account_for(manifest: Manifest, cases: Sequence[LabelledCase], found: Evaluation, lost: Mapping[str, str]) -> None:
    """An entry for each case (told apart), each prediction without a label, and each image that was lost before."""
    failed: dict[str, list[str]] = {}
    for failure in found.failures[len(lost) :]:
        where = f"{failure['object']}: " if failure["object"] else ""
        failed.setdefault(failure["case"], []).append(where + failure["error"])
    for case in cases:
        files = tuple(file for file in (case.image, case.label) if file is not None)
        status, reason = DONE, ""
        if case.name in failed:
            status, reason = FAILED, "; ".join(failed[case.name])
        elif case.name in found.without_rows:
            status, reason = SKIPPED, "none of its objects is in the label map or counts as a negative"
        manifest.add(Entry(case.name, str(case.label), status, reason, files))
    for error in failed.get("", []):
        manifest.add(Entry(Path(error.split(": ")[0]).name, error.split(": ")[0], FAILED, error))
    for image, why in lost.items():
        manifest.add(Entry(Path(image).name, image, FAILED, why))


def end(failures: list[dict[str, str]]) -> None:
    """List the failures and end with code 1 if there are any."""
    _list_failures(failures)
    if failures:
        raise typer.Exit(1)


def _list_failures(failures: list[dict[str, str]]) -> None:
    if not failures:
        return
    errors = Console(stderr=True)
    errors.print(f"[red]{len(failures)} could not be scored:[/red]")
    for failure in failures:
        where = " / ".join(part for part in (failure["case"], failure["object"]) if part)
        errors.print(
            f"  {where}: {failure['error']}" if where else f"  {failure['error']}", soft_wrap=True, markup=False
        )
