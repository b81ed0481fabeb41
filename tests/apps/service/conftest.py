"""The service in this process, with the small network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boltzformer.apps.service.access import Access
from boltzformer.apps.service.app import make_app
from boltzformer.apps.service.limits import Limits
from boltzformer.inference.api import Segmenter
from boltzformer.volumes.segmented import Algorithm
from fastapi.testclient import TestClient

from tests.inference.conftest import network, overlay, segmenter, weights  # noqa: F401
from tests.support import body, save_nifti

ALGORITHM = Algorithm("BoltzFormer", "0.1.0", "ab" * 32)
LIMITS = Limits(voxels=2_000_000, prompts=3, read_seconds=60)
TOKEN = "a-token-of-thirty-letters-or-so"


@pytest.fixture(scope="module")
def make_client(segmenter: Segmenter) -> Iterator[Callable[..., TestClient]]:  # noqa: F811
    """A client of a running service with other limits or a token."""
    open_clients = []

    def make(token: str = "", **limits: Any) -> TestClient:
        access = Access(token=token)
        client = TestClient(
            make_app(segmenter, ALGORITHM, replace(LIMITS, **limits), access), base_url="http://127.0.0.1"
        )
        client.__enter__()
        open_clients.append(client)
        return client

    yield make
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    affine = [[-1, 0, 0, 5], [0, -1, 0, 7], [0, 0, 3, -2], [0, 0, 0, 1]]
    return save_nifti(tmp_path_factory.mktemp("scan") / "ct.nii.gz", body((24, 20, 4)), np.array(affine, float))


def send(client: TestClient, *files: tuple[str, bytes] | Path, **fields: Any) -> Any:
    """Submit a request; gives the answer."""
    parts = [("file", (f.name, f.read_bytes()) if isinstance(f, Path) else f) for f in files]
    return client.post("/api/jobs", files=parts or None, data={"prompt": "nodule", "modality": "CT", **fields})


def wait(client: TestClient, answer: Any, seconds: float = 120) -> dict[str, Any]:
    """Follow a job until it is over."""
    assert answer.status_code == 202, answer.text
    told = answer.json()
    until = time.monotonic() + seconds
    while told["state"] in ("queued", "running"):
        assert time.monotonic() < until, told
        time.sleep(0.05)
        told = client.get(f"/api/jobs/{told['id']}").json()
    return told
