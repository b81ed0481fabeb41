"""Counters for Prometheus; none of them tells a prompt, a name or an address."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from boltzformer.apps.service.jobs import DONE, Job, Jobs
from boltzformer.volumes.segmented import Algorithm

_SECONDS = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class Meters:
    """What the service counts.

    Args:
        algorithm: named in `boltzformer_build`.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("boltzformer_jobs", "Requests by how they ended.", ["outcome"], registry=self.registry)
        self.refused = Counter(
            "boltzformer_refused", "Requests that were not let in, by status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "boltzformer_job_seconds", "Time of a segmentation.", buckets=_SECONDS, registry=self.registry
        )
        self.slices = Counter("boltzformer_slices", "Slices that were segmented.", registry=self.registry)
        self.bytes = Counter("boltzformer_upload_bytes", "Bytes that came in.", registry=self.registry)
        self.waiting = Gauge("boltzformer_jobs_waiting", "Requests in line.", registry=self.registry)
        self.running = Gauge("boltzformer_jobs_running", "Requests being worked on.", registry=self.registry)
        build = Gauge(
            "boltzformer_build", "Version and weights.", ["version", "weights_sha256"], registry=self.registry
        )
        build.labels(algorithm.version, algorithm.weights_sha256).set(1)

    def ended(self, job: Job) -> None:
        """Count a job that is over."""
        self.jobs.labels(job.state).inc()
        self.slices.inc(job.slices_done)
        if job.state == DONE:
            self.seconds.observe(job.ended - job.began)

    def text(self, jobs: Jobs) -> bytes:
        """Everything in Prometheus' text format."""
        waiting, running = jobs.counts()
        self.waiting.set(waiting)
        self.running.set(running)
        return generate_latest(self.registry)
