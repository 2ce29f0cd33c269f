"""What billing's job handlers share: reading payloads, and how a refusal ends a job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

from sqlalchemy.orm import Session

from svc_infra.billing.schemas import Payload
from svc_infra.exceptions import InvalidPayload, SvcInfraError, TenantParked
from svc_infra.jobs.job import Job
from svc_infra.jobs.outcome import Discard, Outcome, Snooze
from svc_infra.webhooks.service import Publication

INVOICE_CREATED = "billing.invoice.created"
# A parked tenant's jobs wait for whoever unparks it.
_PARKED_FOR = timedelta(hours=1)

P = TypeVar("P", bound=Payload)


class Publisher(Protocol):
    """What the handlers ask of the webhook service."""

    def publish_many(self, session: Session, publications: Sequence[Publication]) -> list[str]:
        """Publish with the commit of ``session``."""
        ...


def parsed(jobs: Sequence[Job], kind: type[P]) -> tuple[dict[str, P], dict[str, Outcome]]:
    """The payloads by job id, and the outcomes of the jobs whose payload will never be readable."""
    payloads: dict[str, P] = {}
    refused: dict[str, Outcome] = {}
    for job in jobs:
        try:
            payloads[job.id] = kind.parse(job.payload)
        except InvalidPayload as error:
            refused[job.id] = Discard(f"InvalidPayload: {error}")
    return payloads, refused


def refusal(error: SvcInfraError) -> Outcome:
    """How a job ends whose invoice was refused: for good, or until the tenant is unparked."""
    if isinstance(error, TenantParked):
        return Snooze(_PARKED_FOR)
    return Discard(f"{type(error).__name__}: {error}")
