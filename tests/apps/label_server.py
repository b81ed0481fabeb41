"""A real MONAI Label server on a loopback port, and weights of the shipped architecture to serve."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from boltzformer.recipe_network import record_definition
from boltzformer.weights import save_atomically
from monai.bundle import ConfigParser

from tests.support import BUNDLE

STARTS_WITHIN_S = 600


def shipped_network_weights(path: Path, seed: int = 0) -> Path:
    """Random weights of `configs/network/shipped.json` with a recipe, as a training would leave them."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "network/shipped.json")])
    parser.update({"bundle_root": str(BUNDLE), "pretrained": False})
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network_def")
    recipe = {
        "network": record_definition(network, BUNDLE / "models"),
        "input": {"window": "auto", "axis": 2, "num_adjacent": 0, "pixel_size_mm": None},
        "thresholds": {"far_prompt": 0.4},
        "trained_on": {
            "modalities": ["CT"],
            "objects": {"left parotid gland": ["left parotid gland in head and neck CT"], "larynx": ["larynx"]},
        },
    }
    save_atomically(network.state_dict(), path, recipe)
    return path


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def served(command: Sequence[str], port: int, log: Path) -> Iterator[Any]:
    """Starts a server and gives MONAI Label's own client for it; ends the server and all that it started."""
    from monailabel.client import MONAILabelClient

    environment = {**os.environ, "PYTHONPATH": str(BUNDLE), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    client = MONAILabelClient(f"http://127.0.0.1:{port}", tmpdir=str(log.parent))
    try:
        _wait_for(client, process, log)
        yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait_for(client: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            client.info()
            return
        except Exception as error:
            late = time.monotonic() - began > STARTS_WITHIN_S
            if process.poll() is not None or late:
                raise AssertionError(f"the server did not start ({error}):\n{log.read_text()[-4000:]}") from error
            time.sleep(1)


def label_command(*arguments: str) -> list[str]:
    """`monailabel ...` in this environment."""
    return [sys.executable, "-m", "monailabel.main", *arguments]
