"""What both evaluation commands do once masks and labels are there: score, write, print, report failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from boltzformer.errors import InputError
from boltzformer.metrics.evaluation import evaluate_folder
from boltzformer.metrics.files import write_json
from boltzformer.metrics.measures.cases import EvaluationSettings, LabelledCase
from boltzformer.metrics.measures.evaluation import Evaluation
from boltzformer.metrics.measures.prediction_files import PredictionFolder
from boltzformer.metrics.show.report import write_report
from boltzformer.metrics.show.terminal import print_comparison, print_evaluation
from boltzformer.metrics.summary.comparison import compare_with
from boltzformer.volumes.checks import read_volume


@contextmanager
def settings_as_input() -> Iterator[None]:
    """Turn the ValueError of a setting outside its range into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def score(
    cases: list[LabelledCase],
    folder: PredictionFolder,
    settings: EvaluationSettings,
    workers: int,
    output_dir: Path,
    compare_to: Path | None,
    pictures: int,
    title: str,
    lost: Sequence[dict[str, str]] = (),
) -> Evaluation:
    """Evaluate, write all files and print the tables; `lost` are failures from before, for the lists."""
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("scoring", total=len(cases))
        found = evaluate_folder(
            cases, folder, read_volume, settings, workers, progress=lambda _: progress.advance(task)
        )
    found.failures[:0] = lost
    found.write(output_dir)
    comparison = None if compare_to is None else compare_with(found, compare_to)
    if comparison is not None:
        write_json(output_dir / "comparison.json", comparison)
    report = write_report(output_dir / "report.html", found, cases, folder, read_volume, comparison, pictures, title)
    print_evaluation(found.summary, console)
    if comparison is not None:
        print_comparison(comparison, console)
    console.print(f"Report: {report}", soft_wrap=True)
    return found


def end(failures: list[dict[str, str]]) -> None:
    """List the failures and end with code 1 if there are any."""
    if not failures:
        return
    errors = Console(stderr=True)
    errors.print(f"[red]{len(failures)} could not be scored:[/red]")
    for failure in failures:
        where = " / ".join(part for part in (failure["case"], failure["object"]) if part)
        errors.print(
            f"  {where}: {failure['error']}" if where else f"  {failure['error']}", soft_wrap=True, markup=False
        )
    raise typer.Exit(1)
