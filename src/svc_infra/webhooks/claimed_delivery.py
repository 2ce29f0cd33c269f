"""A delivery that this process holds the lease of, and what came of sending it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from svc_infra.webhooks.delivery import EndpointTarget, SendResult, Verdict
from svc_infra.webhooks.message import Message


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that is ours until its lease ends, with all that sending it takes.

    ``attempt`` counts every attempt ever made, ``scheduled_attempt`` those of the present run through the
    retry schedule. ``is_ailing`` and ``paused_until`` are the endpoint's health when it was claimed; the
    caps are the endpoint's own.
    """

    id: str
    lease_id: str
    attempt: int
    endpoint_id: str
    message: Message
    target: EndpointTarget
    tenant_id: str | None = None
    attempt_base: int = 0
    trigger: str = "scheduled"
    lane_key: str | None = None
    is_ailing: bool = False
    paused_until: datetime | None = None
    rate_per_second: float | None = None
    in_flight_cap: int | None = None

    @property
    def scheduled_attempt(self) -> int:
        """The number of the attempt in the retry schedule, from 1."""
        return self.attempt - self.attempt_base


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """An attempt, judged. ``attempted_at`` is wall time, ``finished_at`` business time."""

    delivery: ClaimedDelivery
    result: SendResult
    verdict: Verdict
    attempted_at: datetime
    judged_at: datetime
