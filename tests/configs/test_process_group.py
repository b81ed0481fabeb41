from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.configs.conftest import ENVIRONMENT, bundle_command, settings
from tests.support import BUNDLE

# The command itself, in an interpreter that goes on when it is done.
SCRIPT = """
import runpy
import time
from pathlib import Path
import torch.distributed as dist

def threads():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

dist.init_process_group("gloo")
for _ in range(200):  # a thread gives itself its name a moment after it has begun
    if threads():
        break
    time.sleep(0.05)
assert threads() > 0
dist.destroy_process_group()
runpy.run_module("monai.bundle", run_name="__main__")
assert not dist.is_initialized()
assert threads() == 0, f"{threads()} threads are left"
print("none is left")
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are read from /proc")
@pytest.mark.parametrize(("run_id", "name"), [("training", "train"), ("evaluating", "evaluate")])
def test_no_thread_of_the_group_is_left_to_the_end_of_the_interpreter(trained, tmp_path, run_id, name):
    # a thread that is: "terminate called without an active exception", now and then, after a finished run
    files = (f"configs/{name}.json", f"configs/multi_gpu_{name}.json", trained.overlay)
    _, _, _, *arguments = bundle_command(run_id, *files)  # all but python -m monai.bundle
    arguments += [*settings(tmp_path, trained.dataset), "--max_epochs", "1"]
    if name == "evaluate":
        arguments += ["--checkpoint", str(trained.weights)]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, cwd=BUNDLE, env={**ENVIRONMENT, **alone}, capture_output=True, text=True)
    assert "none is left" in done.stdout, done.stderr[-3000:]
