"""The steps of jobs in their traces, with the names that OpenTelemetry has for messaging.

No attribute names a tenant or holds any of a payload: traces are read by more people, and kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from svc_infra.jobs.job import DEFAULT_QUEUE, Job, JobRequest
from svc_infra.tracing import Step, continuing, step, trace_id_of

SYSTEM = "svc_infra"


def enqueueing(name: str, queue: str | None) -> AbstractContextManager[Step]:
    """Enqueue a job, which belongs to this step if its request is made within."""
    return step(f"enqueue {name}", "producer", _enqueue_attributes(queue))


def enqueueing_many(requests: Sequence[JobRequest]) -> AbstractContextManager[Step]:
    """Write many jobs at once, which belong to where their requests were made."""
    if not requests:
        return nullcontext(Step(None))
    attributes = _enqueue_attributes(requests[0].queue)
    count = {"messaging.batch.message_count": len(requests)}
    return step(f"enqueue {requests[0].name}", "producer", {**attributes, **count})


def running(jobs: Sequence[Job]) -> AbstractContextManager[Step]:
    """Run jobs of one name, one or a batch, which goes on with the trace that they come from.

    A batch from several traces is a trace of its own, with links to theirs: what it enqueues and publishes is
    done for all of them at once.
    """
    first = jobs[0]
    traces = dict.fromkeys(job.trace_context for job in jobs)
    is_one = len(traces) == 1 or len({trace_id_of(trace) for trace in traces}) == 1
    attributes: dict[str, str | int] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": first.queue,
        "svc_infra.job.name": first.name,
    }
    if len(jobs) == 1:
        attributes |= {"messaging.message.id": first.id, "svc_infra.job.attempt": first.attempt}
    else:
        attributes["messaging.batch.message_count"] = len(jobs)
    return continuing(
        first.trace_context if is_one else None,
        f"run {first.name}",
        "consumer",
        attributes,
        links=[trace for trace in traces if trace] if len(jobs) > 1 else (),
    )


def _enqueue_attributes(queue: str | None) -> dict[str, str | int]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": queue or DEFAULT_QUEUE,
    }
