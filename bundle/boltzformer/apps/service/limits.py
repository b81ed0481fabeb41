"""What the service accepts, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on everything that a client decides.

    Attributes:
        upload_mb: of one request, in MB (1e6 bytes).
        files: of one request.
        voxels: of one volume.
        prompts: of one request.
        waiting: requests that may wait, or be on their way in, while another one is worked on.
        upload_seconds: for a request to come in.
        read_seconds: for reading a volume.
        job_seconds: for a request once it is its turn.
        kept: results that are kept at most; the oldest go first.
        keep_minutes: until a result is deleted.
    """

    upload_mb: float = 2000.0
    files: int = 5000
    voxels: int = 200_000_000
    prompts: int = 8
    waiting: int = 4
    upload_seconds: float = 600.0
    read_seconds: float = 120.0
    job_seconds: float = 1800.0
    kept: int = 16
    keep_minutes: float = 30.0
