"""What the owner in the matrix of routes and roles has of webhooks and jobs."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.config import ScheduleSettings
from svc_infra.db.base import new_id
from svc_infra.jobs.enqueueing import insert_jobs
from svc_infra.jobs.job import JobRequest
from svc_infra.jobs.stored_schedules import add_schedule
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.endpoints import add_endpoint
from svc_infra.webhooks.models import DeliveryAttemptRow, DeliveryRow
from svc_infra.webhooks.redelivery import send_test
from svc_infra.webhooks.replay import start_replay
from svc_infra.webhooks.secret_rotation import rotate_secret
from tests.unit.api.route_matrix import OWNER, Seeds

SECRET = "secret-canary-of-32-bytes-or-more"
AT = datetime(2025, 1, 10, 9, tzinfo=UTC)


def sow_webhooks(session: Session, seeds: Seeds) -> None:
    """An endpoint with two secrets, a delivery that failed, a replay; and canaries where secrets are."""
    secrets = ["whsec_" + base64.b64encode(f"{SECRET}-{n}".encode()).decode() for n in range(2)]
    headers = {"X-Token": SECRET}
    endpoint = add_endpoint(
        session,
        url="https://hooks.example.com/x",
        topics=["*"],
        tenant_id=OWNER,
        secret=secrets[0],
        description=seeds.canaries[0],
        options=EndpointOptions(headers=headers),
        now=AT,
    )
    rotate_secret(session, endpoint.id, secret=secrets[1])
    message_id = send_test(session, endpoint.id, now=AT)
    delivery = session.scalars(select(DeliveryRow).where(DeliveryRow.message_id == message_id)).one()
    session.add(
        DeliveryAttemptRow(
            delivery_id=delivery.id,
            attempt=1,
            lease_id=new_id(),
            outcome="refused",
            status_code=500,
            detail=seeds.canaries[0],
            duration_ms=7,
            attempted_at=AT,
        )
    )
    replay = start_replay(session, endpoint.id, now=AT)
    seeds.ids |= {"endpoint_id": endpoint.id, "delivery_id": delivery.id, "replay_id": replay.id}
    seeds.shared |= {"version": "1", "topic": "webhooks.test"}
    seeds.hidden += [SECRET, *secrets]


def sow_jobs(session: Session, seeds: Seeds) -> None:
    """A job that waits in a group, and a schedule that was added by hand."""
    job = JobRequest("shop.report", {"note": seeds.canaries[0]}, tenant_id=OWNER, group_id="group-1")
    [job_id] = insert_jobs(session, [job], now=AT)
    add_schedule(
        session, ScheduleSettings(name="shop.nightly", job="shop.report", cron="0 3 * * *"), actor="t", now=AT
    )
    seeds.shared |= {"job_id": job_id, "group_id": "group-1", "queue": "default", "schedule": "shop.nightly"}
