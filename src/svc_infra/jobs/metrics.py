"""Metrics of running jobs. By name and never by tenant: each value of a label is a series of its own."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800)

JOBS_ENDED = Counter(
    "billing_jobs",
    "Ended attempts by how they ended: completed, retried, snoozed, discarded, cancelled, or lost, whose "
    "lease was gone and which changed nothing.",
    ["name", "outcome"],
)
JOB_SECONDS = Histogram(
    "billing_job_duration_seconds",
    "How long an attempt took, of one job or of a batch that ran in one transaction.",
    ["name"],
    buckets=_SECONDS,
)
JOB_WAIT_SECONDS = Histogram(
    "billing_job_wait_seconds",
    "From when a job was due to its start; of a batch, that of the job that waited longest.",
    ["name"],
    buckets=_SECONDS,
)
