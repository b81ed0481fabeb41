"""Requests in a line: one is worked on, a few wait, the rest are turned away."""

from __future__ import annotations

import logging
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boltzformer.apps.service.limits import Limits
from boltzformer.apps.service.scratch import Scratch, sweep
from boltzformer.apps.service.uploads import Upload
from boltzformer.data.prompts import Prompt
from boltzformer.error_report import find_input_error
from boltzformer.errors import InputError

logger = logging.getLogger(__name__)

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
_CLEANING_SECONDS = 20.0


class QueueFull(Exception):
    """No place is free.

    Attributes:
        retry_after: seconds after which one may be.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class OutOfTime(InputError):
    """A job took longer than it may."""


class Cancelled(InputError):
    """The client took the job back."""


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        key: names the job to its client, and cannot be guessed.
        folder: of its own, gone with the job.
        upload: what came; its files are deleted once the job is over.
        prompts: what to segment.
        modality: as the client gave it.
        body_part: as the client gave it.
        seconds: it may take, once it is its turn.
        state: "queued", "running", "done" or "failed".
        told: what is known so far, as JSON holds it.
        files: name -> file, all that the client may fetch.
        error: one line, where it failed.
        slices_done: of `told["slices"]`.
        began: and `ended`: on the clock `time.monotonic`.
    """

    key: str
    folder: Path
    upload: Upload
    prompts: list[Prompt]
    modality: str
    body_part: str
    seconds: float
    state: str = QUEUED
    told: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    error: str = ""
    slices_done: int = 0
    began: float = 0.0
    ended: float = 0.0
    cancelled: bool = False

    def check(self) -> None:
        """Stop the work on a job whose time is over, or that its client no longer wants.

        Raises:
            OutOfTime: as it says.
            Cancelled: as it says.
        """
        if self.cancelled:
            raise Cancelled("the request was taken back.")
        if time.monotonic() - self.began > self.seconds:
            raise OutOfTime(
                f"it takes longer than {self.seconds:g} s, which a request may at most; give a smaller volume or fewer "
                "prompts."
            )


class Jobs:
    """The line of requests and its one worker.

    Args:
        work: does a job and fills `told` and `files`.
        limits: places, and how long results are kept.
        ended: called with each job that is over.
    """

    def __init__(
        self, work: Callable[[Job], None], limits: Limits, ended: Callable[[Job], None] = lambda job: None
    ) -> None:
        self._work, self._limits, self._on_end = work, limits, ended
        self._lock = threading.Lock()
        self._taken = 0
        self._durations: list[float] = []
        self._jobs: dict[str, Job] = {}
        self._line: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._count = 0
        self._scratch: Scratch | None = None
        self._stopping = threading.Event()
        self._worker = threading.Thread(target=self._run, name="segmentation", daemon=True)
        # of its own: a job may take longer than the results before it may be kept
        self._cleaner = threading.Thread(target=self._keep_clean, name="cleaning", daemon=True)

    def start(self) -> None:
        """Make the folder for requests, which only this user can read, and start the worker."""
        sweep()
        self._scratch = Scratch.make()
        self._worker.start()
        self._cleaner.start()

    def stop(self) -> None:
        """Stop after the slice that is being computed, and delete everything."""
        self._stopping.set()
        with self._lock:
            for job in self._jobs.values():
                job.cancelled = True
        self._line.put(None)
        self._worker.join(timeout=60)
        if self._scratch is not None:
            self._scratch.delete()

    @property
    def root(self) -> Path | None:
        """The folder for requests, between start and stop."""
        return None if self._scratch is None else self._scratch.folder

    def reserve(self) -> Path:
        """Take a place, before the request's body is read.

        Returns:
            a new folder for the request; its place is given back by `give_back`, or by the end of the job.

        Raises:
            QueueFull: none is free.
            OSError: the folder cannot be made; no place is taken.
        """
        with self._lock:
            if self._taken > self._limits.waiting:
                usual = sum(self._durations) / len(self._durations) if self._durations else 30.0
                raise QueueFull(max(1, min(600, round(usual))))
            self._taken += 1
        try:
            return self._new_folder()
        except BaseException:
            with self._lock:
                self._taken -= 1
            raise

    def _new_folder(self) -> Path:
        with self._lock:
            if self._scratch is None or not self._scratch.folder.is_dir():
                # what cleans the system's temporary folder takes those that were long unused
                self._scratch = Scratch.make()
            root = self._scratch.folder
        return Path(tempfile.mkdtemp(dir=root))

    def give_back(self, folder: Path) -> None:
        """Free a place whose request came to nothing."""
        with self._lock:
            self._taken -= 1
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, folder: Path, upload: Upload, prompts: list[Prompt], modality: str, body_part: str) -> Job:
        """Put a request in line, on the place that it has reserved."""
        job = Job(
            secrets.token_urlsafe(18), folder, upload, prompts, modality, body_part, seconds=self._limits.job_seconds
        )
        with self._lock:
            self._jobs[job.key] = job
        self._line.put(job)
        return job

    def find(self, key: str) -> Job | None:
        """The job, or None where there is none any more."""
        with self._lock:
            return self._jobs.get(key)

    def ahead(self, job: Job) -> int:
        """How many others come before a job."""
        with self._lock:
            before = list(self._jobs.values())
        before = before[: before.index(job)] if job in before else []
        return sum(other.state in (QUEUED, RUNNING) for other in before)

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, and that are worked on."""
        with self._lock:
            states = [job.state for job in self._jobs.values()]
        return states.count(QUEUED), states.count(RUNNING)

    def remove(self, job: Job) -> None:
        """Forget a job and give its place back; one that runs ends after the slice at hand."""
        with self._lock:
            job.cancelled = True
            if job.state == RUNNING:
                return
            known = self._jobs.pop(job.key, None) is not None
            waited = known and job.state == QUEUED
            if waited:
                self._taken -= 1
                job.state = FAILED
        shutil.rmtree(job.folder, ignore_errors=True)
        if waited:
            self._on_end(job)

    def _run(self) -> None:
        while (job := self._line.get()) is not None:
            self._do(job)
            self._clean()

    def _keep_clean(self) -> None:
        while not self._stopping.wait(_CLEANING_SECONDS):
            self._clean()

    def _do(self, job: Job) -> None:
        with self._lock:
            if job.key not in self._jobs:  # taken back while it waited
                return
            job.began, job.state = time.monotonic(), RUNNING
        self._count += 1
        try:
            job.check()
            self._work(job)
            state, told = DONE, "done"
        except Exception as error:
            mistake = find_input_error(error)
            state, told = FAILED, "failed" if mistake is None else f"refused ({type(mistake).__name__})"
            if mistake is None:
                job.error = f"the service failed ({type(error).__name__}); whoever runs it finds request {self._count}"
                job.error += " in its log."
                # no message: it may hold what the file said of a patient
                logger.error("request %d: %s", self._count, where(error))
            else:
                job.error = job.upload.for_client(str(mistake))
        job.ended = time.monotonic()
        shutil.rmtree(job.upload.folder, ignore_errors=True)
        with self._lock:
            self._taken -= 1
            if state == DONE:
                self._durations = [*self._durations[-9:], job.ended - job.began]
        job.state = state
        logger.info("request %d: %s, %.1f s", self._count, told, job.ended - job.began)
        self._on_end(job)
        if job.cancelled:
            self.remove(job)

    def _clean(self) -> None:
        """Delete results whose time is over, and the oldest where there are too many."""
        with self._lock:
            over = [job for job in self._jobs.values() if job.state in (DONE, FAILED)]
        late = time.monotonic() - 60 * self._limits.keep_minutes
        for number, job in enumerate(over):
            if job.ended < late or number < len(over) - self._limits.kept:
                self.remove(job)


def where(error: BaseException) -> str:
    """Kind and place of an exception, without its message."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}, line {trace.tb_lineno}, in {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"
