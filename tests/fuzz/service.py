"""Kinds of input to the HTTP service: forms with damaged files, fields and bytes; requests of every sort.

The service, its worker and the network are real. Uploads are read in the fuzzer's process, except one in forty, which
the service's own reader process reads: starting it takes longer than fifty inputs.
"""

from __future__ import annotations

import gzip
import json
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
from boltzformer.apps.service.scratch import LOCK

from tests.fuzz import mutations as m
from tests.fuzz.files import damaged_nifti, damaged_series
from tests.fuzz.sandbox import Sandbox, compare_grids
from tests.fuzz.tools import Finished, Tools, nifti, series, zipped

ANSWERS = {200, 202, 204, 206, 304, 307, 400, 401, 403, 404, 405, 408, 413, 416, 422, 503}
"""Codes that the service may answer with; 500 is none of them."""
BOUNDARY = b"frontier"
REAL_READER = 1 / 40
PATHS = ["/", "/healthz", "/metrics", "/favicon.ico", "/openapi.json", "/api/info", "/api/jobs", "/page/index.html"]
PATHS += ["/page/", "/api/jobs/KEY", "/api/jobs/KEY/files/NAME", "/api", "//", "/api/jobs/KEY/files/"]
METHODS = [
    "GET",
    "GET",
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "get",
    "\u00dc",
    "X" * 300,
]
HEADERS = ["host", "origin", "content-type", "content-length", "range", "if-none-match", "authorization", "cookie"]
HEADERS += ["transfer-encoding", "accept", "if-modified-since", "x-forwarded-host", "content-encoding", "if-range"]
VALUES = ["http://[", "http://127.0.0.1", "null", "bytes=0-1", "bytes=-", "bytes=9-2,1-", "bytes=0-0,0-0", "*", "W/"]
VALUES += ["localhost:99999999", "127.0.0.1", "[::1", "gzip", "chunked", "Bearer", "multipart/form-data; boundary="]
FILES = [
    "a.nii",
    "a.nii.gz",
    "a.dcm",
    "../a.nii",
    "a.nrrd",
    "a.mhd",
    "C:\\a.nii.gz",
    ".hidden",
    "",
    "a" * 300,
    "a\nb.nii",
]


def form(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """A form with files and fields, one part of it damaged, or its bytes; what is accepted is followed to its end."""
    tools.real_reader = bool(draw.random() < REAL_READER)
    files, source = _files(sandbox, draw, tools)
    fields = [("prompt", m.pick(draw, ["liver", "lung nodule in chest CT"])), ("modality", "CT")]
    while draw.random() < 0.4:
        name = m.pick(draw, ["prompt", "modality", "body_part", "file", *m.TEXTS])
        fields.insert(int(draw.integers(len(fields) + 1)), (str(name), str(m.pick(draw, [*m.TEXTS, "MR", "x" * 5000]))))
    body = b"".join(_part(name, value.encode("utf-8", "replace")) for name, value in fields)
    body += b"".join(_part("file", content, name) for name, content in files) + b"--" + BOUNDARY + b"--\r\n"
    if draw.random() < 0.25:
        body, source = m.damage_bytes(body, draw), None
    kind = b"multipart/form-data; boundary=" + BOUNDARY
    if draw.random() < 0.1:
        kind = m.damage_bytes(kind, draw)
    return _watched(sandbox, tools, lambda: _submit(sandbox, tools, body, kind, source))


def _files(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> tuple[list[tuple[str, bytes]], Path | None]:
    """What is uploaded under which names; and the same on disk, where one NIfTI file is all."""
    way = draw.random()
    if way < 0.45:
        path = damaged_nifti(sandbox.given, draw)
        name = "a.nii.gz" if path.read_bytes()[:2] == b"\x1f\x8b" else "a.nii"
        path = path.rename(path.with_name(name))
        return [(name, path.read_bytes())], path
    if way < 0.7:
        folder = damaged_series(sandbox.given, draw, tools.folder)
        return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()], None
    whole = m.pick(draw, [[nifti()], [zipped(nifti())], list(series(tools.folder)), [nifti()] * 2, [b""], []])
    return [(str(m.pick(draw, [*FILES, *m.TEXTS[:14]])), content) for content in whole], None


def _part(name: str, content: bytes, filename: str | None = None) -> bytes:
    head = b'Content-Disposition: form-data; name="' + name.encode("utf-8", "replace") + b'"'
    if filename is not None:
        head += b'; filename="' + filename.encode("utf-8", "replace") + b'"'
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def _submit(sandbox: Sandbox, tools: Tools, body: bytes, kind: bytes, source: Path | None) -> int:
    answer = _ask(sandbox, tools, "POST", "/api/jobs", content=body, headers={b"content-type": kind})
    if answer.status_code != 202:
        return 2
    told = answer.json()
    path = f"/api/jobs/{told['id']}"
    while told["state"] in ("queued", "running"):
        time.sleep(0.002)
        told = _ask(sandbox, tools, "GET", path).json()
    if told["state"] == "failed":
        if "\n" in told["error"] or "the service failed" in told["error"]:
            sandbox.problems.append(f"a job ended with {told['error']!r}")
    elif not told["files"] or told["slices_done"] > told["slices"]:
        sandbox.problems.append(f"done with {told['slices_done']} of {told['slices']} slices, files {told['files']}")
    for name in told["files"]:
        content = _ask(sandbox, tools, "GET", f"{path}/files/{quote(name)}").content
        if told["state"] == "done":
            _check_file(sandbox, name, content, source)
    _ask(sandbox, tools, "DELETE", path)
    if tools.service.get(path).status_code != 404:
        sandbox.problems.append("a deleted job is still there")
    return int(told["state"] == "failed")


def _check_file(sandbox: Sandbox, name: str, content: bytes, source: Path | None) -> None:
    if name.endswith(".json"):
        json.loads(content, parse_constant=_no_number)
    elif name.endswith(".nii.gz") and source is not None:
        content = gzip.decompress(content)
        kind = nib.Nifti2Image if int.from_bytes(content[:4], "little") == 540 else nib.Nifti1Image
        image = kind.from_bytes(content)
        voxels = np.asarray(image.dataobj)
        if voxels.dtype != np.uint8 or voxels.max(initial=0) > 3:
            sandbox.problems.append(f"{name}: {voxels.dtype} up to {voxels.max(initial=0)} is no mask")
        compare_grids(sandbox, Path(name), source, image.shape, image.affine, in_mm=False)


def request(sandbox: Sandbox, draw: m.Draw, tools: Tools) -> Finished:
    """One request of any method, path, query, headers and body."""
    path = m.pick(draw, PATHS)
    for word in ("KEY", "NAME"):
        path = path.replace(word, quote(str(m.pick(draw, m.TEXTS)), safe="%/.", errors="replace"))
    if draw.random() < 0.3:
        path += m.pick(draw, ["/..", "/%2e%2e/app.py", "?a=" + "b" * 3000, "//etc/passwd", "%00", "%ff", "/../../x"])
    headers = {}
    for _ in range(int(draw.integers(0, 4))):
        value = str(m.pick(draw, VALUES if draw.random() < 0.6 else m.TEXTS))
        headers[m.pick(draw, HEADERS).encode()] = (
            value.encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b"")
        )
    body = m.json_bytes({"prompt": "liver"}, draw) if draw.random() < 0.3 else b""
    method = m.pick(draw, METHODS)

    def ask() -> int:
        answer = _ask(sandbox, tools, method, path, content=body, headers=headers)
        return 0 if answer.status_code < 400 else 2

    return _watched(sandbox, tools, ask)


def _watched(sandbox: Sandbox, tools: Tools, work: Any) -> Finished:
    """Around requests: no error of the service's own, nothing changed outside its folder, and nothing left there."""
    codes: list[int] = []
    done = tools.call(lambda: codes.append(work()))
    root = tools.service.app.state.jobs.root
    left = sorted(path for path in root.iterdir() if path.name != LOCK)
    if left and codes:
        done.problems.append(f"left in the service's folder: {[path.name for path in left]}")
    for path in left:  # of the next input it would be said too
        shutil.rmtree(path)
    done.code = codes[0] if codes else 1
    return done


def _ask(sandbox: Sandbox, tools: Tools, method: str, path: str, **more: Any) -> Any:
    """A request; its answer is judged."""
    answer = tools.service.request(method, f"http://127.0.0.1{path}", follow_redirects=False, **more)
    told = f"{method} {path[:80]} was answered with {answer.status_code}"
    if answer.status_code not in ANSWERS:
        sandbox.problems.append(f"{told} {answer.text[:200]}")
    if "content-security-policy" not in answer.headers:
        sandbox.problems.append(f"{told} without the headers that every answer carries")
    text = answer.text if answer.status_code >= 400 else ""
    if "Traceback" in text or str(tools.folder) in text or str(sandbox.root) in text:
        sandbox.problems.append(f"{told} and what is nobody's business: {text[:300]}")
    if "json" in answer.headers.get("content-type", "") and answer.content:
        content = json.loads(answer.content, parse_constant=_no_number)
        if answer.status_code >= 400 and "\n" in str(content["error"]):
            sandbox.problems.append(f"{told} and several lines")
    return answer


def _no_number(word: str) -> None:
    raise ValueError(f"{word} in JSON")
