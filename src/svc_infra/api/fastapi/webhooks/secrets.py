"""The signing secrets of an endpoint over HTTP: listed without their values, rotated, and ended early."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.fields import Answer, Id, InstantText, RequestBody
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession, keep_sealed
from svc_infra.api.fastapi.webhooks.access import Parts, Reader, Writer
from svc_infra.api.fastapi.webhooks.endpoint_fields import EndpointWithSecret, Secret, shown_with_secret
from svc_infra.webhooks.secret_rotation import expire_secret, list_secrets, rotate_secret
from svc_infra.webhooks.stored_secrets import MAX_OVERLAP_SECONDS

router = APIRouter(route_class=UnitOfWorkRoute, tags=["webhook secrets"])
_SECRETS = "/endpoints/{endpoint_id}/secrets"


class SecretShown(Answer):
    """A secret that messages are signed with, without its value; one of ed25519 shows its public key."""

    version: int
    expires_at: InstantText | None
    public_key: str | None


class SecretList(Answer):
    """All secrets that are valid, newest first."""

    items: list[SecretShown]


class Rotation(RequestBody):
    """For how long the old secrets sign, too; 0 ends them now. Without ``secret`` one is made."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_seconds": 86_400}]})

    overlap_seconds: Annotated[float, Field(ge=0, le=MAX_OVERLAP_SECONDS)] = 86_400
    secret: Secret | None = None


@router.get(
    _SECRETS,
    operation_id="webhooks_list_secrets",
    responses=refusals(_404="The tenant has no such endpoint."),
)
async def list_all(endpoint_id: Id, principal: Reader, session: UnitSession) -> SecretList:
    """List the secrets that are valid now, newest first, without their values."""
    found = await session.run_sync(list_secrets, endpoint_id, tenant_id=principal.tenant_id)
    return SecretList(items=[SecretShown.model_validate(secret) for secret in found])


@router.post(
    f"{_SECRETS}/rotate",
    operation_id="webhooks_rotate_secret",
    dependencies=[Depends(keep_sealed)],
    responses=refusals(_404="The tenant has no such endpoint."),
)
async def rotate(
    endpoint_id: Id,
    principal: Writer,
    session: UnitSession,
    parts: Parts,
    rotation: Annotated[Rotation, Body()] = Rotation(),  # noqa: B008  # never changed
) -> EndpointWithSecret:
    """Give an endpoint a new signing secret. The answer shows it, now and never again."""

    def apply(sync: Session) -> EndpointWithSecret:
        return shown_with_secret(
            rotate_secret(
                sync,
                endpoint_id,
                overlap_seconds=rotation.overlap_seconds,
                secret=None if rotation.secret is None else rotation.secret.get_secret_value(),
                tenant_id=principal.tenant_id,
                keys=parts.rules.keys,
                actor=principal.actor,
            )
        )

    return await session.run_sync(apply)


@router.delete(
    f"{_SECRETS}/{{version}}",
    operation_id="webhooks_expire_secret",
    responses=refusals(_404="The tenant has no such endpoint, or it has no such secret."),
)
async def expire(
    endpoint_id: Id,
    version: Annotated[int, Path(ge=1, le=2**31 - 1)],
    principal: Writer,
    session: UnitSession,
) -> SecretList:
    """End an older secret now, before its overlap is over; the newest is ended by rotating it."""

    def apply(sync: Session) -> SecretList:
        expire_secret(sync, endpoint_id, version, tenant_id=principal.tenant_id, actor=principal.actor)
        left = list_secrets(sync, endpoint_id, tenant_id=principal.tenant_id)
        return SecretList(items=[SecretShown.model_validate(secret) for secret in left])

    return await session.run_sync(apply)
