"""Several processes: one is killed, all start again from last.pt, and the result is that of an undisturbed run."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.configs.conftest import ENVIRONMENT, bundle_command, settings
from tests.support import BUNDLE

FLAT = ["--warmup_share", "0", "--max_epochs", "4", "--val_interval", "4", "--resume", "true"]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "out" / "last.pt", weights_only=True)
    assert content["progress"]["iteration"] == 4 * content["progress"]["epoch_length"]
    return content["network"]


def _assert_same(first: Path, second: Path) -> None:
    left, right = _weights(first), _weights(second)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def _kill_a_worker(launcher: subprocess.Popen[str], last: Path, log: Path) -> None:
    """SIGKILL one of the two as soon as there is a state to go on from."""
    end = time.monotonic() + 900
    while not last.is_file():
        assert launcher.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)
    workers = [child for child in psutil.Process(launcher.pid).children() if "monai.bundle" in child.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_costs_the_steps_since_the_checkpoint_alone(phantoms, overlay, run_bundle, tmp_path):
    files = ("configs/train.json", "configs/multi_gpu_train.json", overlay)
    command = bundle_command("training", *files, processes=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_bundle([*command, *settings(whole, phantoms), *FLAT])
    command.insert(command.index("--standalone"), "--max_restarts=1")
    log = tmp_path / "log"
    with log.open("w") as stream:
        arguments = [*command, *settings(killed, phantoms), *FLAT]
        with subprocess.Popen(arguments, cwd=BUNDLE, env=ENVIRONMENT, stdout=stream, stderr=stream, text=True) as run:
            _kill_a_worker(run, killed / "out" / "last.pt", log)
            assert run.wait(900) == 0, log.read_text()[-3000:]
    assert "resumed" in log.read_text()
    _assert_same(whole, killed)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _stand_in(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)


def _programs(tmp_path: Path) -> Path:
    """`torchrun` of this environment, and programs in place of those that reach other machines."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _stand_in(programs, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    _stand_in(programs, "ssh", f'echo "$1" >> {tmp_path}/hosts; bash -c "$2"')
    _stand_in(programs, "scontrol", "echo localhost")
    _stand_in(programs, "srun", '"$@"')
    return programs


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["ssh.sh", "slurm.sbatch"])
def test_launch_files_start_a_run_of_several_machines(launch, phantoms, overlay, tmp_path):
    """Over ssh two launchers of one process each meet at a port, as on two machines; SLURM starts one of two here."""
    programs = _programs(tmp_path)
    configs = f"['configs/train.json','configs/multi_gpu_train.json','{overlay}']"
    environment = {**ENVIRONMENT, "PATH": f"{programs}:{os.environ['PATH']}", "CONFIGS": configs}
    environment["PORT"] = str(_free_port())
    if launch == "ssh.sh":
        environment |= {"HOSTS": "localhost 127.0.0.1", "PROCESSES": "1"}
    else:
        environment |= {"SLURM_JOB_NODELIST": "x", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "PROCESSES": "2"}
    command = ["bash", f"configs/launch/{launch}", *settings(tmp_path, phantoms), "--max_epochs", "1"]
    done = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    content = torch.load(tmp_path / "out" / "last.pt", weights_only=True)
    assert len(content["random"]) == 2  # of two processes
    if launch == "ssh.sh":
        assert sorted((tmp_path / "hosts").read_text().split()) == ["127.0.0.1", "localhost"]


def test_launch_files_are_correct_shell():
    for name in ("ssh.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(BUNDLE / "configs" / "launch" / name)], check=True)
    lost = {key: value for key, value in ENVIRONMENT.items() if key != "HOSTS"}
    done = subprocess.run(["bash", "configs/launch/ssh.sh"], cwd=BUNDLE, env=lost, capture_output=True, text=True)
    assert done.returncode != 0
    assert "name the machines" in done.stderr
