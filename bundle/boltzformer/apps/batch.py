"""Many volumes, one after another: a bad one stops no other, and a second start does only what is missing."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from boltzformer.apps.findings import Finding
from boltzformer.apps.record import BatchRecord, request_digest
from boltzformer.apps.results import as_segmented
from boltzformer.data.folders import folder_lock
from boltzformer.data.prompts import Prompt
from boltzformer.error_report import find_input_error, reason_of
from boltzformer.errors import InputError
from boltzformer.inference.api import Segmenter
from boltzformer.inference.formats import check_fits, format_of, save_as
from boltzformer.output_files import check_apart, check_folder
from boltzformer.volumes.dicom import find_series
from boltzformer.volumes.nifti_files import check_present
from boltzformer.volumes.segmented import Algorithm, SegmentedVolume
from boltzformer.volumes.sources import open_volume
from boltzformer.volumes.spacing import has_spacing

logger = logging.getLogger(__name__)

DONE, SKIPPED, FAILED = "done", "skipped", "failed"
_TEMPORARY = ".boltzformer-"


@dataclass(frozen=True)
class Request:
    """What is asked of every volume.

    Attributes:
        prompts: what to segment.
        formats: names of output formats.
        algorithm: what makes the masks.
        uneven_spacing: see `boltzformer.volumes.dicom.find_series`.
        settings: whatever else changes the masks, for the check whether a case is finished.
    """

    prompts: tuple[Prompt, ...]
    formats: tuple[str, ...]
    algorithm: Algorithm
    uneven_spacing: str = "refuse"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseResult:
    """What became of one volume.

    Attributes:
        case: its name.
        status: "done", "skipped" (finished by an earlier start) or "failed".
        seconds: taken now, or by the earlier start.
        findings: for each prompt.
        files: that were written, relative to the output folder.
        reason: why it failed.
        inputs: the volume's files, in order; empty where it is absent, or no series.
    """

    case: str
    status: str
    seconds: float = 0.0
    findings: tuple[Finding, ...] = ()
    files: tuple[str, ...] = ()
    reason: str = ""
    inputs: tuple[Path, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the inputs, which the account of the run names."""
        return {
            "case": self.case,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "findings": [finding.as_dict() for finding in self.findings],
            "files": list(self.files),
            **({"reason": self.reason} if self.reason else {}),
        }


def run_batch(
    cases: Sequence[Mapping[str, Any]],
    request: Request,
    make_segmenter: Callable[[], Segmenter],
    output_dir: Path,
    overwrite: bool = False,
    report: Callable[[CaseResult], None] = lambda result: None,
) -> list[CaseResult]:
    """Segment volumes and write their masks; a case's files appear together, once all of them are written.

    Args:
        cases: from `find_volumes`.
        request: what is asked.
        make_segmenter: gives the network, called when the first volume needs it.
        output_dir: made if needed.
        overwrite: do finished cases again.
        report: gets each result as it comes.

    Returns:
        a result for each case, in order.

    Raises:
        InputError: nothing could start: an unknown format, an output folder that cannot be written, that
            holds an input, or that another run writes to, or a network that cannot be built.
    """
    for name in request.formats:
        format_of(name)
    check_folder(output_dir)
    check_apart(output_dir, [case["image"] for case in cases])
    with _only_writer(output_dir):
        record = BatchRecord(output_dir)
        segmenter: Segmenter | None = None
        results = []
        for case in cases:
            began = time.perf_counter()
            inputs: tuple[Path, ...] = ()
            try:
                inputs = _source_files(case)
                digest = request_digest(case, request, inputs)
                result = None if overwrite else _finished(record, str(case["case"]), digest)
                if result is None:
                    segmenter = segmenter or _started(make_segmenter)
                    made, findings = _segment(case, request, segmenter)
                    with _drafted(made, request.formats, output_dir) as (draft, names):
                        result = CaseResult(made.case, DONE, time.perf_counter() - began, findings, names)
                        record.settle(digest, result.as_dict(), draft, made.files)
            except _CannotStart as error:
                raise error.reason from error
            except Exception as error:
                logger.debug("case %s failed", case["case"], exc_info=error)
                result = CaseResult(str(case["case"]), FAILED, time.perf_counter() - began, reason=reason_of(error))
            results.append(replace(result, inputs=inputs))
            report(results[-1])
    return results


class _CannotStart(Exception):
    """The network cannot be built, which no other case would mend."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _started(make_segmenter: Callable[[], Segmenter]) -> Segmenter:
    try:
        return make_segmenter()
    except Exception as error:
        raise _CannotStart(find_input_error(error) or error) from error


def _source_files(case: Mapping[str, Any]) -> tuple[Path, ...]:
    path = Path(case["image"])
    if path.is_dir():
        return find_series(path, "warn", str(case.get("series_uid", ""))).files
    check_present(path)
    return (path,)


def _finished(record: BatchRecord, case: str, digest: str) -> CaseResult | None:
    """The earlier result, where it answers the same request and every file of it is as it was written."""
    entry = record.entries.get(case)
    if entry is None or entry["request"] != digest or not record.is_intact(case):
        return None
    findings = tuple(Finding.from_dict(finding) for finding in entry["findings"])
    return CaseResult(case, SKIPPED, entry["seconds"], findings, tuple(entry["files"]))


def _segment(
    case: Mapping[str, Any], request: Request, segmenter: Segmenter
) -> tuple[SegmentedVolume, tuple[Finding, ...]]:
    volume = open_volume(
        case["image"],
        modality=case.get("modality", ""),
        body_part=str(case.get("body_part", "")),
        uneven_spacing=request.uneven_spacing,
        series_uid=str(case.get("series_uid", "")),
    )
    check_fits(volume, request.formats)
    result = segmenter.segment(volume, request.prompts, window=case.get("window"), spacing_known=has_spacing(case))
    return as_segmented(result, str(case["case"]), request.algorithm)


@contextmanager
def _drafted(made: SegmentedVolume, formats: Sequence[str], output_dir: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """All files of a case in a folder beside their place, which goes away again."""
    draft = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=output_dir))
    try:
        yield draft, tuple(str(path.relative_to(draft)) for name in formats for path in save_as(made, name, draft))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _only_writer(output_dir: Path) -> Iterator[None]:
    lock = folder_lock(output_dir / "record")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{output_dir}: another run is writing there; wait for it or name another folder.") from None
    try:
        for left in output_dir.glob(f"{_TEMPORARY}*"):  # by a run that was killed: it held the lock
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()
