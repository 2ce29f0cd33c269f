"""Endpoints over HTTP: a tenant's own, made, looked at, changed, switched and removed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantText, RequestBody, Text
from svc_infra.api.fastapi.pages import Page, Paging
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession, keep_sealed
from svc_infra.api.fastapi.webhooks.access import AppClock, Parts, Reader, Writer
from svc_infra.api.fastapi.webhooks.endpoint_fields import (
    EndpointChange,
    EndpointShown,
    EndpointWithSecret,
    NewEndpoint,
    shown,
    shown_with_secret,
)
from svc_infra.webhooks.audit import AuditEntry, list_acts
from svc_infra.webhooks.endpoint_removal import remove_endpoint
from svc_infra.webhooks.endpoint_switch import disable_endpoint, enable_endpoint
from svc_infra.webhooks.endpoints import (
    Endpoint,
    add_endpoint,
    change_endpoint,
    get_endpoint,
    list_endpoints,
)
from svc_infra.webhooks.redelivery import send_test


class Disabling(RequestBody):
    """Why nothing more is to be sent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "moving house"}]})

    reason: Annotated[Text, Field(min_length=1, max_length=200, examples=["moving house"])]


class Enabling(RequestBody):
    """Whether what was held meanwhile is to be sent now."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"replay_held": True}]})

    replay_held: bool = False


class Enabled(Answer):
    """An endpoint that is sent to again, and how many held deliveries are due now."""

    endpoint: EndpointShown
    replayed: int


class Removed(Answer):
    """How many deliveries that waited were given up."""

    id: Id
    given_up: int


class TestSent(Answer):
    """The message that a worker will deliver."""

    message_id: str


class EndpointAct(Answer):
    """What somebody did to an endpoint, and when."""

    id: Id
    actor: str
    action: str
    detail: dict[str, Any]
    acted_at: InstantText


router = APIRouter(route_class=UnitOfWorkRoute, tags=["webhook endpoints"])
_MISSING = refusals(_404="The tenant has no such endpoint.")


@router.get("/endpoints", operation_id="webhooks_list_endpoints")
async def list_all(principal: Reader, session: UnitSession, paging: Paging) -> Page[EndpointShown]:
    """List the tenant's endpoints in the order of their making."""

    def page(sync: Session) -> Page[EndpointShown]:
        found = list_endpoints(
            sync, tenant_id=principal.tenant_id, after=paging.last_id(sync), limit=paging.reach
        )
        return paging.cut(sync, found, item=shown, key=lambda endpoint: [endpoint.id])

    return await session.run_sync(page)


@router.post(
    "/endpoints",
    status_code=201,
    operation_id="webhooks_create_endpoint",
    dependencies=[Depends(keep_sealed)],
)
async def create(
    endpoint: NewEndpoint,
    principal: Writer,
    session: UnitSession,
    parts: Parts,
    clock: AppClock,
) -> EndpointWithSecret:
    """Make an endpoint. The answer shows its signing secret, now and never again."""

    def add(sync: Session) -> Endpoint:
        return add_endpoint(
            sync,
            url=endpoint.url,
            topics=endpoint.topics,
            tenant_id=principal.tenant_id,
            secret=None if endpoint.secret is None else endpoint.secret.get_secret_value(),
            signing=endpoint.signing,
            description=endpoint.description,
            options=endpoint.options(),
            rules=parts.rules,
            actor=principal.actor,
            now=clock.now(),
        )

    return shown_with_secret(await session.run_sync(add))


@router.get("/endpoints/{endpoint_id}", operation_id="webhooks_get_endpoint", responses=_MISSING)
async def get(endpoint_id: Id, principal: Reader, session: UnitSession) -> EndpointShown:
    """Return one endpoint."""
    return shown(await session.run_sync(get_endpoint, endpoint_id, tenant_id=principal.tenant_id))


@router.patch("/endpoints/{endpoint_id}", operation_id="webhooks_change_endpoint", responses=_MISSING)
async def change(
    endpoint_id: Id, change: EndpointChange, principal: Writer, session: UnitSession, parts: Parts
) -> EndpointShown:
    """Change what is given. What is being sent at this moment goes to the old URL."""

    def apply(sync: Session) -> Endpoint:
        now_set = get_endpoint(sync, endpoint_id, tenant_id=principal.tenant_id).options
        return change_endpoint(
            sync,
            endpoint_id,
            tenant_id=principal.tenant_id,
            url=change.url,
            topics=change.topics,
            description=change.description,
            options=change.options(now_set),
            rules=parts.rules,
            actor=principal.actor,
        )

    return shown(await session.run_sync(apply))


@router.delete("/endpoints/{endpoint_id}", operation_id="webhooks_remove_endpoint", responses=_MISSING)
async def remove(endpoint_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> Removed:
    """Remove an endpoint and its secrets for good; what waits for it is given up, and stays readable."""
    given_up = await session.run_sync(
        remove_endpoint, endpoint_id, now=clock.now(), tenant_id=principal.tenant_id, actor=principal.actor
    )
    return Removed(id=endpoint_id, given_up=given_up)


@router.post("/endpoints/{endpoint_id}/enable", operation_id="webhooks_enable_endpoint", responses=_MISSING)
async def enable(
    endpoint_id: Id,
    principal: Writer,
    session: UnitSession,
    clock: AppClock,
    enabling: Annotated[Enabling, Body()] = Enabling(),  # noqa: B008  # never changed
) -> Enabled:
    """Send to an endpoint again; this also ends a pause."""

    def switch(sync: Session) -> Enabled:
        theirs: dict[str, Any] = {"tenant_id": principal.tenant_id}
        replayed = enable_endpoint(
            sync,
            endpoint_id,
            now=clock.now(),
            replay_held=enabling.replay_held,
            actor=principal.actor,
            **theirs,
        )
        return Enabled(endpoint=shown(get_endpoint(sync, endpoint_id, **theirs)), replayed=replayed)

    return await session.run_sync(switch)


@router.post("/endpoints/{endpoint_id}/disable", operation_id="webhooks_disable_endpoint", responses=_MISSING)
async def disable(
    endpoint_id: Id, disabling: Disabling, principal: Writer, session: UnitSession, clock: AppClock
) -> EndpointShown:
    """Send nothing more to an endpoint; what is published meanwhile is held."""

    def switch(sync: Session) -> EndpointShown:
        theirs: dict[str, Any] = {"tenant_id": principal.tenant_id}
        get_endpoint(sync, endpoint_id, **theirs)
        disable_endpoint(
            sync, endpoint_id, reason=disabling.reason, now=clock.now(), actor=principal.actor, **theirs
        )
        sync.expire_all()  # it was changed by a statement
        return shown(get_endpoint(sync, endpoint_id, **theirs))

    return await session.run_sync(switch)


@router.post(
    "/endpoints/{endpoint_id}/test",
    status_code=202,
    operation_id="webhooks_test_endpoint",
    responses=_MISSING | refusals(_409="The endpoint is disabled."),
)
async def test(endpoint_id: Id, principal: Writer, session: UnitSession, clock: AppClock) -> TestSent:
    """Send ``webhooks.test`` to an endpoint, whatever its topics are; a worker delivers it."""
    message_id = await session.run_sync(
        send_test, endpoint_id, now=clock.now(), tenant_id=principal.tenant_id, actor=principal.actor
    )
    return TestSent(message_id=message_id)


@router.get("/endpoints/{endpoint_id}/acts", operation_id="webhooks_list_endpoint_acts", responses=_MISSING)
async def list_its_acts(
    endpoint_id: Id, principal: Reader, session: UnitSession, paging: Paging
) -> Page[EndpointAct]:
    """List who did what to an endpoint, newest first."""

    def page(sync: Session) -> Page[EndpointAct]:
        get_endpoint(sync, endpoint_id, tenant_id=principal.tenant_id)
        found = list_acts(
            sync,
            endpoint_id,
            tenant_id=principal.tenant_id,
            before=paging.last_id(sync),
            limit=paging.reach,
        )
        return paging.cut(sync, found, item=_act, key=lambda act: [act.id])

    return await session.run_sync(page)


def _act(entry: AuditEntry) -> EndpointAct:
    return EndpointAct(
        id=entry.id,
        actor=entry.actor,
        action=entry.action,
        detail=dict(entry.detail),
        acted_at=entry.acted_at,
    )
