"""The log of deliveries: one line for each attempt that was recorded.

A line holds ids, the topic, the class of the outcome and a status, never a URL, a header or any of a body:
those may hold secrets. What the endpoint answered is with the attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from logging import INFO, WARNING
from typing import Any

import structlog

from svc_infra.logs import is_written
from svc_infra.tracing import trace_id_of
from svc_infra.webhooks.claimed_delivery import DeliveryResult
from svc_infra.webhooks.delivery import Answer

log = structlog.get_logger(__name__)


def log_attempts(results: Sequence[DeliveryResult], held: Collection[str]) -> None:
    """Write a line for each of ``results`` that is in ``held``, where logging was configured."""
    if not is_written(WARNING):
        return
    is_verbose = is_written(INFO)
    for result in results:
        is_dead = result.verdict.state == "dead"
        if result.delivery.id in held and (is_dead or is_verbose):
            log.log(WARNING if is_dead else INFO, "webhooks.attempt_ended", **_line(result))


def _line(result: DeliveryResult) -> dict[str, Any]:
    delivery, answer = result.delivery, result.result
    line: dict[str, Any] = {
        "delivery_id": delivery.id,
        "endpoint_id": delivery.endpoint_id,
        "message_id": delivery.message.id,
        "topic": delivery.message.topic,
        "attempt": delivery.attempt,
        "state": result.verdict.state,
        "outcome": result.verdict.outcome.value,
        "ms": answer.duration_ms,
    }
    if isinstance(answer, Answer):
        line["status"] = answer.status
    trace_id = trace_id_of(delivery.message.trace_context)
    return line if trace_id is None else {**line, "trace_id": trace_id}
