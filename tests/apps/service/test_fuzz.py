"""Two thousand damaged requests: each gets a short answer, none an exception, and nothing is left behind."""

from __future__ import annotations

import json
import string
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tests.apps.service.conftest import send, wait
from tests.apps.service.test_attacks import before_each_slice

COUNT = 2000
BOUNDARY = "boundary-of-the-form"
NAMES = [
    "ct.nii.gz",
    "a.nii",
    "../../a.nii.gz",
    "a.dcm",
    "a.exe",
    "",
    "\0.nii",
    "é.nii.gz",
    "a" * 5000 + ".nii",
    "con.nii",
]
TEXTS = [
    "nodule",
    "",
    " ",
    "$__import__('os').abort()",
    "@network",
    "%x#y",
    "x" * 5000,
    "\n\r",
    "\ud7ff",
    "肺",
    "\0",
    "{}",
]
FIELDS = ["prompt", "modality", "body_part", "file", "prompts", "__class__", "", "x" * 300, 'a"b', "window"]
TYPES = ["multipart/form-data; boundary=" + BOUNDARY] * 6
TYPES += [
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "application/json",
    "text/plain",
    "",
    "multipart/x;;;=",
]
PATHS = [
    "/api/jobs/{}",
    "/api/jobs/{}/files/scan.nii.gz",
    "/api/jobs/{}/files/{}",
    "/page/{}",
    "/{}",
    "/api/{}",
    "//{}",
]
KEYS = ["x", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..", "%00", "a" * 3000, "'; drop", "%ff%fe", "-1", "{}"]
METHODS = ["GET", "DELETE", "PUT", "PATCH", "POST", "HEAD", "OPTIONS"]


def form(draw: np.random.Generator, whole: bytes) -> bytes:
    """A form with parts that may be missing, doubled, odd or cut."""
    parts = []
    for _ in range(int(draw.integers(0, 5))):
        is_file = draw.random() < 0.5
        name = "file" if is_file and draw.random() < 0.9 else pick(draw, FIELDS)
        line = f'Content-Disposition: form-data; name="{name}"'
        line += f'; filename="{pick(draw, NAMES)}"' if is_file else ""
        content = whole[: int(draw.integers(len(whole)))] if is_file else pick(draw, TEXTS).encode()
        parts.append(f"--{BOUNDARY}\r\n{line}\r\n\r\n".encode() + content + b"\r\n")
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    way = draw.random()
    if way < 0.25 and body:
        return body[: int(draw.integers(len(body)))]
    if way < 0.5:
        damaged = bytearray(body)
        for place in draw.integers(0, len(damaged), size=3):
            damaged[place] = int(draw.integers(256))
        return bytes(damaged)
    return body


def pick(draw: np.random.Generator, among: list[Any]) -> Any:
    return among[int(draw.integers(len(among)))]


def ask(client: Any, draw: np.random.Generator, whole: bytes) -> Any:
    """One request: mostly a form, else another path or method."""
    if draw.random() < 0.7:
        headers = {"content-type": pick(draw, TYPES)}
        if draw.random() < 0.05:
            headers["content-length"] = pick(draw, ["-1", "x", "99999999999", "0"])
        return client.post("/api/jobs", content=form(draw, whole), headers=headers)
    path = pick(draw, PATHS).replace("{}", pick(draw, KEYS))
    headers = {"origin": pick(draw, ["null", "http://evil.example", "x", ""])} if draw.random() < 0.2 else {}
    headers |= {"host": pick(draw, ["127.0.0.1", "evil.example", "", "::::"])} if draw.random() < 0.2 else {}
    return client.request(pick(draw, METHODS), path, headers=headers)


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def test_damaged_requests_get_a_short_answer_and_leave_nothing(make_client, segmenter, scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = make_client(waiting=COUNT)
    draw, whole = np.random.default_rng(0), scan.read_bytes()
    go, seen = threading.Event(), dict[int, int]()
    with before_each_slice(segmenter, lambda: go.wait(300)):
        first = send(client, scan)  # holds the network, so that what is accepted waits and is taken back
        beside = files_below(tmp_path, scan.parent)
        for number in range(COUNT):
            answer = ask(client, draw, whole)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (number, answer.status_code, answer.text[:300])
            if answer.status_code == 202:
                assert client.delete(f"/api/jobs/{answer.json()['id']}").status_code == 204
            elif answer.status_code >= 400 and answer.text and answer.headers["content-type"] == "application/json":
                error = json.loads(answer.text)["error"]
                assert set(error) & set(string.ascii_letters), number
                assert "\n" not in error, number
                assert "Traceback" not in error, number
                assert str(client.app.state.jobs.root) not in error, number
        assert files_below(tmp_path, scan.parent) == beside
        go.set()
        assert wait(client, first)["state"] == "done"
    assert {202, 400, 404, 405, 413} <= set(seen), seen
    assert wait(client, send(client, scan))["state"] == "done"  # as if nothing had been
