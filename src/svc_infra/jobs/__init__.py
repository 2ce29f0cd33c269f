"""Durable jobs and schedules: enqueued in the caller's transaction, finished in the handler's.

Owns the life of a job (docs/job_lifecycle.md) and the fires of schedules. Does not own what a job does.
"""

from __future__ import annotations

from svc_infra.jobs.cron import CatchUp, CronSchedule
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.job import Job, JobRequest, JobState
from svc_infra.jobs.kind import JobKind
from svc_infra.jobs.memory import InMemoryJobQueue
from svc_infra.jobs.one_job import process_one
from svc_infra.jobs.outcome import Cancel, Complete, Discard, Outcome, Retry, Snooze
from svc_infra.jobs.queue import JobQueue
from svc_infra.jobs.retry import RetryPolicy
from svc_infra.jobs.sql import SqlJobQueue
from svc_infra.jobs.worker import Worker

__all__ = [
    "Cancel",
    "CatchUp",
    "Complete",
    "CronSchedule",
    "Discard",
    "Handlers",
    "InMemoryJobQueue",
    "Job",
    "JobKind",
    "JobQueue",
    "JobRequest",
    "JobState",
    "Outcome",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "SqlJobQueue",
    "Worker",
    "process_one",
]
