"""`boltzformer launch`: files that start one training on several machines, by SLURM or by plain ssh.

Every machine runs `torchrun`, which starts a process for each GPU and, where one dies, all of them again; each start
goes on from the run's `last.pt`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from boltzformer.apps.bundle_config import file_list
from boltzformer.apps.console import one_line_errors
from boltzformer.apps.runs import Dataset, Output, Overlay, Setting, parse_setting, plain_path, run_files, trained
from boltzformer.bundle_folder import bundle_folder
from boltzformer.errors import InputError
from boltzformer.json_file import read_json
from boltzformer.metrics.files import write_text
from boltzformer.settings import check_run

app = typer.Typer(no_args_is_help=True, help="Files that start a training on several machines.")

Processes = Annotated[int, typer.Option(min=1, help="Of each machine: one for each of its GPUs.")]
GlobalBatch = Annotated[
    int | None, typer.Option(help="Slices of one step over all GPUs, reached by accumulation; 384 in the paper.")
]
Restarts = Annotated[int, typer.Option(min=0, help="How often all processes may be started anew after one died.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Of the first machine, where all meet.")]


@dataclass(frozen=True)
class Training:
    """What every machine starts.

    Attributes:
        nodes: machines.
        processes: of each machine.
        restarts: of all processes, after one died.
        port: of the first machine.
        arguments: of `python -m monai.bundle run`.
    """

    nodes: int
    processes: int
    restarts: int
    port: int
    arguments: tuple[str, ...]

    def command(self, job: str, head: str, more: str = "") -> str:
        """The line for a shell; `job`, `head` and `more` stand in it as they are, so that they may be variables."""
        elastic = f"--nnodes={self.nodes} --nproc_per_node={self.processes} --max-restarts={self.restarts}"
        meeting = f'--rdzv-backend=c10d --rdzv-id="{job}" --rdzv-endpoint="{head}:{self.port}"'
        # the store that torchrun would share keeps the addresses of processes that died, which new ones would wait for
        fresh = "env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        python = f"{fresh} {shlex.quote(sys.executable)} -m torch.distributed.run"
        return f"{python} {elastic} {meeting}{more} -m monai.bundle run {shlex.join(self.arguments)}"


@app.command("slurm")
def slurm(
    file: Annotated[Path, typer.Argument(help="The job to write, such as train.sbatch.")],
    dataset: Dataset,
    output: Output,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    processes: Processes = 8,
    global_batch: GlobalBatch = None,
    restarts: Restarts = 3,
    port: Port = 29400,
    overlay: Overlay = None,
    setting: Setting = None,
) -> None:
    """Write a job for `sbatch`; give it the partition, account and time of your cluster."""
    with one_line_errors():
        training = plan(dataset, output, nodes, processes, global_batch, restarts, port, overlay, setting)
        print(f"Written: {write_text(file, slurm_job(training, file.stem, output))}")


@app.command("ssh")
def ssh(
    file: Annotated[Path, typer.Argument(help="The script to write, such as train.sh.")],
    dataset: Dataset,
    output: Output,
    host: Annotated[list[str], typer.Option(help="A machine, as ssh knows it; repeat it. All meet at the first.")],
    processes: Processes = 8,
    global_batch: GlobalBatch = None,
    restarts: Restarts = 3,
    port: Port = 29400,
    overlay: Overlay = None,
    setting: Setting = None,
) -> None:
    """Write a script for `bash`; bundle, Python, data and output lie in the same folders on all machines."""
    with one_line_errors():
        training = plan(dataset, output, len(host), processes, global_batch, restarts, port, overlay, setting)
        print(f"Written: {write_text(file, ssh_script(training, file.stem, output, host))}")


def plan(
    dataset: Path,
    output: Path,
    nodes: int,
    processes: int,
    global_batch: int | None,
    restarts: int,
    port: int,
    overlays: Sequence[str] | None,
    settings: Sequence[str] | None,
) -> Training:
    """What every machine starts; arguments are the commands' options.

    Raises:
        InputError: a file is missing, a setting is not known, or the global batch cannot be reached.
    """
    files = run_files(["train.json", "multi_gpu_train.json"], overlays, dataset)
    values: dict[str, Any] = {
        "dataset_dir": plain_path(dataset),
        **trained(output),
        **dict(parse_setting(text) for text in settings or []),
        "resume": True,
    }
    if global_batch is not None:
        values["accumulation_steps"] = _accumulation(global_batch, nodes * processes, files, values)
    check_run(files, values, "--set ")
    listed = file_list(plain_path(file) for file in files)
    given = [word for key, value in values.items() for word in (f"--{key}", _word(value))]
    return Training(nodes, processes, restarts, port, ("training", "--config_file", listed, *given))


def _accumulation(global_batch: int, world: int, files: Sequence[Path], values: dict[str, Any]) -> int:
    """Batches of each process that make one step."""
    found: dict[str, Any] = {}
    for file in files:
        found.update(read_json(file, "config"))
    batch = {**found, **values}.get("batch_size")
    if not isinstance(batch, int):
        raise InputError("--global-batch: say with --set batch_size=12 how many slices a GPU takes at once.")
    if global_batch % (batch * world):
        raise InputError(
            f"--global-batch {global_batch} is no multiple of {world} processes x batch_size {batch} = {batch * world}."
        )
    return global_batch // (batch * world)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)  # as MONAI's command line reads it


def slurm_job(training: Training, name: str, output: Path) -> str:
    """Text of the job file: one task a machine, put back into the queue where a machine is lost."""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={shlex.quote(name)}",
        f"#SBATCH --nodes={training.nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gres=gpu:{training.processes}",
        f"#SBATCH --cpus-per-task={8 * training.processes}",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={shlex.quote(str(output.resolve()))}_%x_%j.out",
        "set -euo pipefail",
        f"cd {shlex.quote(str(bundle_folder()))}",
        # no pipe into `head`: it may close before all is said, and pipefail would end the job
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "head=${hosts%%$'\\n'*}",
        f"exec srun {training.command('$SLURM_JOB_ID', '$head')}",
    ]
    return "\n".join(lines) + "\n"


def ssh_script(training: Training, name: str, output: Path, hosts: Sequence[str]) -> str:
    """Text of the script: it starts the training on every machine, waits, and ends with the last bad exit code.

    Each machine's output goes to `OUTPUT_HOST.out`. Ctrl-C ends the training everywhere; it saves its state before.
    """
    log = output.resolve().parent / output.name
    lines = [
        "#!/bin/bash",
        "set -u",
        "started=()",
        "trap 'kill \"${started[@]}\" 2>/dev/null' INT TERM",
        f"mkdir -p {shlex.quote(str(log.parent))}",
        "# -tt: what runs on a machine ends with its connection",
    ]
    for host in hosts:
        command = training.command(name, hosts[0], f" --local-addr={shlex.quote(host)}")
        remote = f"cd {shlex.quote(str(bundle_folder()))} && exec {command}"
        file = shlex.quote(f"{log}_{host}.out")
        call = f"ssh -tt -o BatchMode=yes {shlex.quote(host)} {shlex.quote(remote)}"
        lines += [f"{call} </dev/null >>{file} 2>&1 &", "started+=($!)"]
    lines += [
        "code=0",
        'for process in "${started[@]}"; do wait "$process" || code=$?; done',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
