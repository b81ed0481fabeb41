"""`boltzformer experiment`: a table or figure of the paper from its JSON; runs what is missing, then makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from boltzformer.apps.console import one_line_errors, print_error
from boltzformer.apps.experiment_claims import claim_lines
from boltzformer.apps.experiment_definition import read_table
from boltzformer.apps.experiment_figures import draw_figure
from boltzformer.apps.experiment_plan import plan_runs
from boltzformer.apps.experiment_rows import rows_by_seed
from boltzformer.apps.experiment_runs import Launcher, execute, is_finished, launch, launch_warm, write_slurm
from boltzformer.apps.experiment_tables import collect, describe_budget, write_table
from boltzformer.errors import InputError

BUNDLE = Path(__file__).resolve().parents[2]


def main(
    table: Annotated[Path, typer.Argument(help="Such as configs/tables/table3.json, or a figure.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared datasets.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables; the runs lie below it in `runs`.")] = Path(
        "experiments"
    ),
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cuda",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row: seeds 0, 1, ...")] = 1,
    dataset: Annotated[list[str] | None, typer.Option(help="In place of the table's datasets; repeat it.")] = None,
    section: Annotated[str | None, typer.Option(help="List that is scored; the table's own is `test`.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Behind the table's own, such as cpu_seconds; repeat it.")
    ] = None,
    overlay: Annotated[list[str] | None, typer.Option(help="Config below every row: a network, a budget.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs of this machine for one run (torchrun).")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Key of a run (a task of an array job).")] = None,
    render_only: Annotated[bool, typer.Option(help="Run nothing; make the tables of what is finished.")] = False,
    write_slurm_to: Annotated[
        Path | None, typer.Option("--write-slurm", help="Write an array job of the missing runs here; run nothing.")
    ] = None,
) -> None:
    """Train and evaluate every row of a table that has no result yet, then write the table, or draw the figure.

    Ends with code 1, after all other runs, if one failed. Started again it goes on: finished runs are not repeated, in
    this table or in another that has the same run.
    """
    with one_line_errors():
        failures = run_table(
            table,
            data,
            out,
            device,
            seeds,
            dataset or (),
            section,
            overlay or (),
            processes,
            only or (),
            render_only,
            write_slurm_to,
            launch_warm,
            column or (),
        )
    for failure in failures:
        print_error(failure)
    if failures:
        raise typer.Exit(1)


def run_table(
    table: Path,
    data: Path,
    out: Path,
    device: str = "cpu",
    seeds: int = 1,
    datasets: Sequence[str] = (),
    section: str | None = None,
    overlays: Sequence[str] = (),
    processes: int = 1,
    only: Sequence[str] = (),
    render_only: bool = False,
    slurm_dir: Path | None = None,
    launcher: Launcher = launch,
    columns: Sequence[str] = (),
) -> list[str]:
    """What the command does; arguments are its options, and `launcher` runs one step of a run.

    Returns:
        a line for each run that failed.

    Raises:
        InputError: a mistake that is found before anything is run.
    """
    kind = _check_device(device, needed=not render_only and slurm_dir is None)
    out, data = out.resolve(), data.resolve()
    overlays = [_overlay(name) for name in overlays]
    content = read_table(table, datasets, section, columns)
    planned = plan_runs(content, data, BUNDLE, overlays, range(seeds), device, processes)
    runs_dir = out / "runs"
    every = {run.key: run for runs in planned.values() for run in runs}
    if unknown := [key for key in only if key not in every]:
        raise InputError(f"--only: the table has no run {unknown[0]}; was it written with other options?")
    missing = [run for run in every.values() if not is_finished(run, runs_dir) and (not only or run.key in only)]
    if slurm_dir is not None:
        command = _command(table, data, out, kind, seeds, content.datasets, content.section, overlays, processes)
        job = write_slurm(slurm_dir, content.name, missing, command, BUNDLE, processes, gpus=kind == "cuda")
        print(f"Written: {job}")
        return []
    failures = []
    for number, run in enumerate([] if render_only else missing, start=1):
        print(f"[{number}/{len(missing)}] {run.label}, seed {run.seed} ({run.key})", flush=True)
        try:
            execute(run, runs_dir, BUNDLE, device, out / "cache", processes, launcher)
        except InputError as error:
            failures.append(f"{run.label}, seed {run.seed}: {error}")
    if not only:  # of the tasks of an array, none has all
        budget = describe_budget(content, overlays, _settings(overlays), device)
        if content.figure is None:
            scored = rows_by_seed(content, planned, runs_dir, data)
            lines, claims = collect(content, planned, scored, runs_dir, data), claim_lines(content, scored)
            written = write_table(content, lines, out, budget, claims)
            print(written["md"].read_text(encoding="utf-8"))
        else:
            written = draw_figure(content, planned, runs_dir, BUNDLE, out, device, budget)
        print(f"Written: {', '.join(str(path) for path in written.values())}")
    return failures


def _check_device(device: str, needed: bool) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"--device: {device!r} is no device; expected cpu, cuda or cuda:1.") from None
    if needed and kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: no GPU is available to PyTorch here; give --device cpu.")
    return kind


def _overlay(name: str) -> str:
    """An overlay's path as the runs can use it: the user's own file, or one of the bundle."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _settings(overlays: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in overlays:
        settings.update(json.loads((BUNDLE / name).read_text(encoding="utf-8")))
    return settings


def _command(
    table: Path,
    data: Path,
    out: Path,
    device: str,
    seeds: int,
    datasets: Sequence[str],
    section: str,
    overlays: Sequence[str],
    processes: int,
) -> list[str]:
    command = [str(table.resolve()), "--data", str(data), "--out", str(out), "--device", device]
    command += ["--seeds", str(seeds), "--section", section, "--processes", str(processes)]
    for option, values in (("--dataset", datasets), ("--overlay", overlays)):
        command += [part for value in values for part in (option, value)]
    return command


if __name__ == "__main__":
    typer.run(main)
