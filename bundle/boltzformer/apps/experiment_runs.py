"""Train and evaluate what a table still lacks, through the bundle's own commands."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from boltzformer.apps.bundle_config import file_list
from boltzformer.apps.experiment_plan import Run, column_of, config_files, evaluation_settings
from boltzformer.apps.warm_process import run_module
from boltzformer.data.folders import folder_lock
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_json, write_text
from boltzformer.training import effort

RESULT = "result.json"
EFFORT = f"train/{effort.NAME}"
ROWS = "evaluate/slices.csv"
_TAIL = 5


@dataclass(frozen=True)
class Step:
    """One call of `monai.bundle run`.

    Attributes:
        run_id: "training" or "evaluating".
        files: config files in order.
        bundle: where it is started.
        log: file that gets all output.
        processes: above 1, started by torchrun.
    """

    run_id: str
    files: tuple[Path, ...]
    bundle: Path
    log: Path
    processes: int = 1


Launcher = Callable[[Step], None]
"""Runs a step, and raises InputError with the reason if it fails."""


def launch(step: Step) -> None:
    """Run a step in a process of its own, its output in the step's log.

    Raises:
        InputError: the step failed; names the log and gives its last lines.
    """
    call = ["-m", "monai.bundle", *_arguments(step)]
    if step.processes > 1:
        call = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={step.processes}", *call]
    with step.log.open("ab") as log:
        done = subprocess.run([sys.executable, *call], cwd=step.bundle, stdout=log, stderr=log, check=False)
    _check(step, done.returncode)


def launch_warm(step: Step) -> None:
    """As `launch`, but a single process does not import PyTorch and MONAI anew, which counts where runs are short.

    For programs whose main module does nothing when it is imported, see Python's `multiprocessing`.

    Raises:
        InputError: as `launch`.
    """
    if step.processes > 1:
        launch(step)
    else:
        _check(step, run_module("monai.bundle", _arguments(step), step.bundle, step.log))


def _arguments(step: Step) -> list[str]:
    return ["run", step.run_id, "--config_file", file_list(step.files)]


def _check(step: Step, code: int) -> None:
    if code:
        text = step.log.read_text(encoding="utf-8", errors="replace") if step.log.is_file() else ""
        lines = text.strip().splitlines()[-_TAIL:]
        raise InputError(f"{step.run_id} ended with code {code}, see {step.log}: {' | '.join(lines)}")


def is_finished(run: Run, runs_dir: Path) -> bool:
    """Whether a run has its result."""
    try:
        content = json.loads((runs_dir / run.key / RESULT).read_text(encoding="utf-8"))
        return bool(content["key"] == run.key) and (runs_dir / run.key / ROWS).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def execute(
    run: Run,
    runs_dir: Path,
    bundle: Path,
    device: str,
    cache_dir: Path,
    processes: int = 1,
    launcher: Launcher = launch,
) -> None:
    """Train and evaluate one run, or go on where an earlier start was stopped.

    The run's folder `runs_dir/key` has `train.json` and `evaluate.json` (the run's own overlays), `train.log`,
    `evaluate.log`, `model.pt`, and, once all is done, `result.json`, which also says what the training cost. A budget
    whose `val_interval` is above `max_epochs` leaves validation out; the last weights are then scored.

    Args:
        run: what to do.
        runs_dir: folder of all runs.
        bundle: the bundle's root.
        device: torch's name of it; with several processes each takes the GPU of its rank.
        cache_dir: slice cache, shared by the runs.
        processes: on this machine.
        launcher: runs one step.

    Raises:
        InputError: a step failed, or another process is at this run.
    """
    folder = runs_dir / run.key
    lock = folder_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: another process is at this run.") from None
    with lock:
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.time()
        common: dict[str, Any] = {
            "bundle_root": str(bundle),
            "dataset_dir": [str(one) for one in run.datasets],
            "cache_dir": str(cache_dir),
            "checkpoint": str(folder / "model.pt"),
            "seed": run.seed,
        }
        if processes == 1:
            common["device"] = f"$torch.device('{device}')"
        trained = folder / "trained"
        if not trained.exists():
            resume = {
                **run.settings,
                "output_dir": str(folder / "train"),
                "resume": (folder / "train" / "last.pt").is_file(),
            }
            launcher(_step("train", run, folder, bundle, {**resume, **common}, processes))
            trained.touch()
        evaluation = {
            "output_dir": str(folder / "evaluate"),
            "section": run.section,
            "checkpoint": str(_weights(folder)),
        }
        launcher(_step("evaluate", run, folder, bundle, {**common, **evaluation}, processes))
        if not (folder / ROWS).is_file():
            raise InputError(f"{folder / ROWS}: the evaluation left no such file; see {folder / 'evaluate.log'}.")
        took = {"seconds": round(time.time() - begun), "processes": processes}
        write_json(folder / RESULT, {**_described(run), **took, "effort": read_json(folder / EFFORT, "effort")})


def _weights(folder: Path) -> Path:
    """Those of the best epoch; those of the last where the training looked at no validation (`val_interval`)."""
    best, last = folder / "model.pt", folder / "train" / "last.pt"
    return last if last.is_file() and not best.is_file() else best


def _step(kind: str, run: Run, folder: Path, bundle: Path, overlay: Mapping[str, Any], processes: int) -> Step:
    own = folder / f"{kind}.json"
    if kind == "train":
        files = (*config_files(bundle, kind, run.overlays, processes), own)
    else:
        overlay = {**evaluation_settings(bundle, run.overlays, run.settings), **overlay}
        files = (*config_files(bundle, kind, (), processes), own)
    write_json(own, overlay)
    run_id = {"train": "training", "evaluate": "evaluating"}[kind]
    return Step(run_id, files, bundle, folder / f"{kind}.log", processes)


def _described(run: Run) -> dict[str, Any]:
    return {
        "key": run.key,
        "label": run.label,
        "overlays": list(run.overlays),
        "settings": dict(run.settings),
        "datasets": [column_of(path) for path in run.datasets],
        "section": run.section,
        "seed": run.seed,
    }


def write_slurm(
    folder: Path,
    name: str,
    runs: Iterable[Run],
    command: Sequence[str],
    bundle: Path,
    processes: int = 1,
    gpus: bool = True,
) -> Path:
    """Write an array job with one task for each run.

    Args:
        folder: gets `NAME.sbatch` and `NAME.runs`, which holds a key a line.
        name: of the job.
        runs: those that are missing.
        command: arguments of `boltzformer.apps.experiment` without `--only`.
        bundle: where the tasks start.
        processes: of a task, each with a GPU.
        gpus: ask for them; else the tasks compute on CPUs.

    Returns:
        the job file, to be handed to `sbatch` (with the partition, account and time of your cluster).
    """
    keys = [run.key for run in runs]
    if not keys:
        raise InputError("every run of the table is finished; there is no job to write.")
    listing = write_text(folder / f"{name}.runs", "".join(f"{key}\n" for key in keys))
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --array=1-{len(keys)}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        *([f"#SBATCH --gres=gpu:{processes}"] if gpus else []),
        f"#SBATCH --cpus-per-task={8 * processes}",
        f"#SBATCH --output={shlex.quote(str(folder.resolve()))}/%x_%A_%a.out",
        "set -euo pipefail",
        f"cd {shlex.quote(str(bundle))}",
        f'key=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {shlex.quote(str(listing.resolve()))})',
        f'exec {shlex.join([sys.executable, "-m", "boltzformer.apps.experiment", *command])} --only "$key"',
    ]
    return write_text(folder / f"{name}.sbatch", "\n".join(lines) + "\n")
