"""The service's end points."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from boltzformer.apps.service.access import PAGE_PATH, Access, Gate
from boltzformer.apps.service.jobs import DONE, QUEUED, Job, Jobs, QueueFull
from boltzformer.apps.service.limits import Limits
from boltzformer.apps.service.meters import Meters
from boltzformer.apps.service.uploads import TooLarge, Upload, receive_upload
from boltzformer.apps.service.work import Work
from boltzformer.data.prompts import Prompt, make_prompts
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.volumes.modality import normal_modality
from boltzformer.volumes.segmented import Algorithm

PAGE = Path(__file__).resolve().parent / "page"
FIELDS = ("prompt", "modality", "body_part")


def make_app(
    segmenter: Segmenter,
    algorithm: Algorithm,
    limits: Limits | None = None,
    access: Access | None = None,
    about: dict[str, Any] | None = None,
) -> FastAPI:
    """Build the service.

    Args:
        segmenter: the one network in memory.
        algorithm: what makes the masks, for results and metrics.
        limits: what is accepted.
        access: who may come in.
        about: more for `/api/info`, such as suggested prompts.

    Returns:
        an ASGI application; its worker runs between start-up and shutdown.
    """
    limits, access = limits or Limits(), access or Access()
    segmenter.inferer.progress = False
    meters = Meters(algorithm)
    jobs = Jobs(Work(segmenter, algorithm, limits), limits, meters.ended)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        yield
        await asyncio.to_thread(jobs.stop)

    app = FastAPI(title=algorithm.name, version=algorithm.version, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.jobs = jobs
    app.add_middleware(Gate, access=access)
    app.mount(PAGE_PATH.rstrip("/"), StaticFiles(directory=PAGE), name="page")
    _add_errors(app, meters)
    _add_state(app, jobs, meters, {**_info(segmenter, algorithm, limits), **(about or {})})
    _add_jobs(app, jobs, meters, limits)
    return app


def _info(segmenter: Segmenter, algorithm: Algorithm, limits: Limits) -> dict[str, Any]:
    return {
        "name": algorithm.name,
        "version": algorithm.version,
        "weights_sha256": algorithm.weights_sha256,
        "device": next(segmenter.network.parameters()).device.type,
        "existence": getattr(segmenter.network, "existence", None) is not None,
        "dicom_seg": find_spec("highdicom") is not None,
        "limits": {"upload_mb": limits.upload_mb, "files": limits.files, "prompts": limits.prompts},
        "suggestions": [],
    }


def _add_errors(app: FastAPI, meters: Meters) -> None:
    @app.exception_handler(AnyHTTPException)
    async def refuse(request: Request, error: AnyHTTPException) -> JSONResponse:
        meters.refused.labels(error.status_code).inc()
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> JSONResponse:
        meters.refused.labels(422).inc()
        return JSONResponse({"error": "the request is malformed; see /openapi.json."}, 422)


def _add_state(app: FastAPI, jobs: Jobs, meters: Meters, info: dict[str, Any]) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(PAGE / "icon.svg")

    @app.head("/healthz", include_in_schema=False)  # what watches a service may not ask for the answer's body
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the service is up; it listens only once the network is in memory."""
        return {"status": "ok", "version": info["version"]}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(meters.text(jobs), media_type=CONTENT_TYPE_LATEST)

    @app.get("/api/info")
    async def about() -> dict[str, Any]:
        """What the service is and takes."""
        return info


def _add_jobs(app: FastAPI, jobs: Jobs, meters: Meters, limits: Limits) -> None:
    @app.post("/api/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, Any]:
        """Put a scan in line: form fields `file` (one NIfTI file or a DICOM series), `prompt` (one or several)."""
        _check_length(request, limits)
        try:
            folder = jobs.reserve()
        except QueueFull as full:
            after = {"retry-after": str(full.retry_after)}
            told = f"the service is busy; try again in {full.retry_after} s."
            raise HTTPException(503, told, after) from None
        try:
            job = await _admit(request, folder, jobs, limits)
        except BaseException as error:
            jobs.give_back(folder)
            raise _as_http(error) from None
        meters.bytes.inc(job.upload.size)
        return _told(job, jobs)

    @app.get("/api/jobs/{key}")
    async def look(key: str) -> dict[str, Any]:
        """How far a job is, and what was found."""
        return _told(_job(jobs, key), jobs)

    @app.get("/api/jobs/{key}/files/{name:path}")
    async def fetch(key: str, name: str) -> FileResponse:
        """One file of a job, by a name that the job lists."""
        path = _job(jobs, key).files.get(name)
        if path is None or not path.is_file():
            raise HTTPException(404, "there is no such file.")
        kind = mimetypes.guess_type(path.name)[0] if path.suffix == ".json" else "application/octet-stream"
        return FileResponse(path, media_type=kind, filename=path.name)

    @app.delete("/api/jobs/{key}", status_code=204)
    async def remove(key: str) -> Response:
        """Stop a job and delete its files."""
        await asyncio.to_thread(jobs.remove, _job(jobs, key))
        return Response(status_code=204)


def _check_length(request: Request, limits: Limits) -> None:
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limits.upload_mb * 1e6:
        raise HTTPException(413, f"the upload is larger than {limits.upload_mb:g} MB, which the service takes at most.")


async def _admit(request: Request, folder: Path, jobs: Jobs, limits: Limits) -> Job:
    place = folder / "scan"
    place.mkdir()
    async with asyncio.timeout(limits.upload_seconds):
        upload = await receive_upload(request.stream(), request.headers.get("content-type", ""), place, limits)
    prompts, modality, body_part = _asked(upload, limits)
    upload.volume  # noqa: B018 - says now what is wrong with the files' number and kind
    return jobs.add(folder, upload, prompts, modality, body_part)


def _asked(upload: Upload, limits: Limits) -> tuple[list[Prompt], str, str]:
    unknown = [name for name in upload.fields if name not in FIELDS]
    if "file" in unknown:
        raise InputError("the field 'file' came as text; send it as a file with a name (curl: -F file=@scan.nii.gz).")
    if unknown:
        raise InputError(f"the field {unknown[0][:50]!r} is not known; the fields are file, {', '.join(FIELDS)}.")
    texts = upload.fields.get("prompt", [])
    if len(texts) > limits.prompts:
        raise InputError(f"{len(texts)} prompts came; the service takes {limits.prompts} at most.")
    if not texts:
        raise InputError('no prompt came; name what to look for, for example "lung nodule in chest CT".')
    modality, body_part = (upload.fields.get(name, [""])[-1].strip() for name in ("modality", "body_part"))
    return make_prompts([(text, None) for text in texts]), normal_modality(modality), body_part[:64]


def _as_http(error: BaseException) -> BaseException:
    if isinstance(error, TooLarge):
        return HTTPException(413, str(error))
    if isinstance(error, InputError):
        return HTTPException(400, str(error))
    if isinstance(error, TimeoutError):
        return HTTPException(408, "the upload took too long.")
    if isinstance(error, ClientDisconnect):
        return HTTPException(400, "the upload broke off.")
    return error


def _job(jobs: Jobs, key: str) -> Job:
    job = jobs.find(key)
    if job is None:
        raise HTTPException(404, "there is no such job, or its time is over.")
    return job


def _told(job: Job, jobs: Jobs) -> dict[str, Any]:
    told: dict[str, Any] = {"id": job.key, "state": job.state, **job.told, "slices_done": job.slices_done}
    told["files"] = list(job.files)
    if job.state == QUEUED:
        told["ahead"] = jobs.ahead(job)
    if job.state == DONE:
        told["seconds"] = round(job.ended - job.began, 2)
    if job.error:
        told["error"] = job.error
    return told
