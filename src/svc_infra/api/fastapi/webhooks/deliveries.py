"""Deliveries over HTTP: what was sent to a tenant's endpoints, how each try went, and sending one again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantText, Text
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.api.fastapi.webhooks.access import AppClock, Reader, Writer
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.delivery_log import body_of, get_delivery, list_attempts, list_deliveries
from svc_infra.webhooks.redelivery import redeliver as redeliver_one

router = APIRouter(route_class=UnitOfWorkRoute, tags=["webhook deliveries"])
_MISSING = refusals(_404="The tenant has no such delivery.")


class Delivery(Answer):
    """One message for one endpoint. ``run_at`` is when it is, or was last, due; ``attempts`` were made."""

    id: Id
    message_id: str
    endpoint_id: str
    topic: str
    state: DeliveryState
    hold_reason: str | None
    attempts: int
    last_outcome: str | None
    run_at: InstantText
    created_at: InstantText
    finished_at: InstantText | None


class DeliveryWithBody(Delivery):
    """A delivery with the body of its message, as it was published: the text that is signed and sent.

    An endpoint that takes CloudEvents is sent the same data in that form.
    """

    body: str


class Attempt(Answer):
    """One HTTP try. ``detail`` is the beginning of the answer to a failed one, as the receiver wrote it."""

    attempt: int
    trigger: str
    outcome: str
    status_code: int | None
    detail: str | None
    duration_ms: int
    attempted_at: InstantText


class AttemptList(Answer):
    """All tries of a delivery, the first one first."""

    items: list[Attempt]


@router.get("/deliveries", operation_id="webhooks_list_deliveries")
async def list_all(
    principal: Reader,
    session: UnitSession,
    paging: Paging,
    endpoint_id: Annotated[Id | None, Query()] = None,
    state: Annotated[DeliveryState | None, Query()] = None,
    topic: Annotated[Annotated[Text, Field(max_length=200)] | None, Query()] = None,
) -> Page[Delivery]:
    """List deliveries to the tenant's endpoints, newest first."""

    def page(sync: Session) -> Page[Delivery]:
        found = list_deliveries(
            sync,
            tenant_id=principal.tenant_id,
            endpoint_id=endpoint_id,
            state=None if state is None else state.value,
            topic=topic,
            before=paging.last_id(sync),
            limit=paging.reach,
        )
        return paging.cut(sync, found, item=Delivery.model_validate, key=lambda delivery: [delivery.id])

    return await session.run_sync(page)


@router.get("/deliveries/{delivery_id}", operation_id="webhooks_get_delivery", responses=_MISSING)
async def get(delivery_id: Id, principal: Reader, session: UnitSession) -> DeliveryWithBody:
    """Return one delivery, with the body that is sent."""

    def read(sync: Session) -> DeliveryWithBody:
        found = get_delivery(sync, delivery_id, tenant_id=principal.tenant_id)
        return DeliveryWithBody.model_validate({**asdict(found), "body": body_of(sync, found)})

    return await session.run_sync(read)


@router.get("/deliveries/{delivery_id}/attempts", operation_id="webhooks_list_attempts", responses=_MISSING)
async def attempts(delivery_id: Id, principal: Reader, session: UnitSession) -> AttemptList:
    """List the tries of a delivery, the first one first."""
    found = await session.run_sync(list_attempts, delivery_id, tenant_id=principal.tenant_id)
    return AttemptList(items=[Attempt.model_validate(attempt) for attempt in found])


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=202,
    operation_id="webhooks_redeliver",
    responses=_MISSING | refusals(_409="The endpoint is disabled, or the delivery is being sent now."),
)
async def redeliver(delivery_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> Delivery:
    """Send one delivery again, whatever became of it, with a whole new retry schedule."""

    def apply(sync: Session) -> Delivery:
        redeliver_one(
            sync, delivery_id, now=clock.now(), tenant_id=principal.tenant_id, actor=principal.actor
        )
        return Delivery.model_validate(get_delivery(sync, delivery_id, tenant_id=principal.tenant_id))

    return await session.run_sync(apply)
