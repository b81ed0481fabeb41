"""Files that start a training on several machines, and a training by one of them that loses a process."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from boltzformer.apps.cli import app
from boltzformer.apps.launch import Training, slurm_job
from boltzformer.data.phantom import write_phantoms
from typer.testing import CliRunner

from tests.support import BUNDLE, SMALL_NETWORK, write_json

LONG = 1800
"""Seconds that a busy machine may take."""
SMALL_RUN = {
    **SMALL_NETWORK,
    "device": "$torch.device('cpu')",
    "window": "lung",
    "batch_size": 2,
    "max_epochs": 3,
    "learning_rate": 1e-3,
    "num_workers": 0,
    "checkpoint_every_minutes": 1e-6,
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "set"
    write_phantoms(folder, num_training=2, num_validation=1, size=(48, 48, 12))
    return folder


def _written(*words: str | Path, expect: int = 0) -> str:
    done = CliRunner().invoke(app, ["launch", *map(str, words)], env={"COLUMNS": "200"})
    assert done.exit_code == expect, done.output
    return Path(str(words[1])).read_text() if expect == 0 else done.output


def test_a_slurm_job_runs_one_torchrun_a_machine_and_reaches_the_global_batch(phantoms, tmp_path):
    options = ["--nodes", "4", "--processes", "2", "--global-batch", "384", "--set", "batch_size=12"]
    text = _written("slurm", tmp_path / "big.sbatch", phantoms, "-o", tmp_path / "run", *options)
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n#SBATCH --gres=gpu:2\n" in text
    assert "#SBATCH --requeue" in text
    start = text.splitlines()[-1]
    for part in (
        "--nnodes=4 --nproc_per_node=2 --max-restarts=3",
        '--rdzv-endpoint="$head:29400"',
        "--accumulation_steps 4",  # 384 = 4 x 2 GPUs x 12 slices x 4
        "--resume True",
        "multi_gpu_train.json",
    ):
        assert part in start
    done = subprocess.run(["bash", "-n", tmp_path / "big.sbatch"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_job_starts_from_the_first_machine_of_its_list(phantoms, tmp_path):
    """SLURM's own commands replaced by ones that tell what they were given."""
    _written("slurm", tmp_path / "big.sbatch", phantoms, "-o", tmp_path / "run", "--nodes", "2")
    _program(tmp_path / "bin" / "scontrol", 'seq -f "node%.0f" 7 20000')  # more than a pipe holds
    _program(tmp_path / "bin" / "srun", 'printf "%s\\n" "$@"')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["bash", tmp_path / "big.sbatch"], env=environment, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert "--rdzv-endpoint=node7:29400" in words
    assert "--rdzv-id=42" in words
    assert words[words.index("--dataset_dir") + 1] == str(phantoms)
    assert words[words.index("--config_file") + 1].startswith("['/")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--global-batch", "100", "--set", "batch_size=12"], "no multiple of 16 processes x batch_size 12 = 192"),
        (["--global-batch", "384"], "say with --set batch_size=12"),
        (["--set", "learning_rat=1"], "learning_rat"),
        (["--overlay", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(phantoms, tmp_path, options, said):
    output = _written(
        "slurm", tmp_path / "a.sbatch", phantoms, "-o", tmp_path / "run", "--nodes", "2", *options, expect=2
    )
    assert said in " ".join(output.split())
    assert not (tmp_path / "a.sbatch").exists()


def _program(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _workers(output: Path) -> Iterator[tuple[int, int]]:
    """(rank, process id) of the trainings that write there."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
        if rank and str(output).encode() in words and b"torch.distributed.run" not in words:
            yield int(rank[1]), int(folder.name)


def _steps(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["progress"]["iteration"]) if file.is_file() else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the processes are found in /proc")
def test_a_training_whose_process_is_killed_goes_on_and_ends_with_equal_weights(phantoms, tmp_path):
    """Two machines, which are this one twice, with a process each; `ssh` is replaced by a local shell."""
    _program(tmp_path / "bin" / "ssh", 'exec bash -c "${@: -1}"')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    small = write_json(tmp_path / "small.json", SMALL_RUN)

    def begin(name: str, port: int) -> tuple[subprocess.Popen[bytes], Path]:
        options = ["--processes", "1", "--port", str(port), "--overlay", small]
        options += ["--set", f"cache_dir={tmp_path / 'cache'}", "--host", "localhost", "--host", "127.0.0.1"]
        _written("ssh", tmp_path / f"{name}.sh", phantoms, "-o", tmp_path / name, *options)
        return subprocess.Popen(["bash", tmp_path / f"{name}.sh"], env=environment, cwd=BUNDLE), tmp_path / name

    whole, kept = begin("whole", 29511)
    assert whole.wait(timeout=LONG) == 0, (tmp_path / "whole_localhost.out").read_text()[-3000:]
    cut, lost = begin("cut", 29512)
    deadline = time.monotonic() + LONG
    while (done := _steps(lost / "last.pt")) < 4:
        assert cut.poll() is None, (tmp_path / "cut_localhost.out").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    victims = dict(_workers(lost))
    assert sorted(victims) == [0, 1]
    assert done < _steps(kept / "last.pt")
    os.kill(victims[1], signal.SIGKILL)
    assert cut.wait(timeout=LONG) == 0, (tmp_path / "cut_localhost.out").read_text()[-3000:]

    said = (tmp_path / "cut_localhost.out").read_text() + (tmp_path / "cut_127.0.0.1.out").read_text()
    assert "exitcode: -9" in said
    resumed = re.search(r"resumed .*epoch \d+, step (\d+) are done", said)
    assert resumed
    assert int(resumed[1]) >= done
    first, second = (torch.load(folder / "last.pt", weights_only=True) for folder in (kept, lost))
    assert first["progress"] == second["progress"]
    assert all(torch.equal(first["network"][name], second["network"][name]) for name in first["network"])
    best = [torch.load(folder / "model.pt", weights_only=True) for folder in (kept, lost)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_jobs_name_with_a_space_is_one_word():
    assert "#SBATCH --job-name='my train'\n" in slurm_job(Training(1, 8, 3, 29400, ()), "my train", Path("out"))
