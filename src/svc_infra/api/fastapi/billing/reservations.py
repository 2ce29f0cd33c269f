"""Reservations of a quota over HTTP: take a quantity, and keep it or give it back once its use is sure."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.access import AppClock, PathId, Writer
from svc_infra.api.fastapi.billing.entitlements import QuotaBody
from svc_infra.api.fastapi.billing.fields import InstantText, QuantityText
from svc_infra.api.fastapi.billing.usage_intake import Amount, Metric
from svc_infra.api.fastapi.route import refusals
from svc_infra.api.fastapi.unit_of_work import UnitOfWorkRoute, UnitSession
from svc_infra.billing.entitlements import RESERVATION_SECONDS, commit, release, reserve
from svc_infra.billing.quota_headers import rate_limit_headers

_MAX_SECONDS = 86_400
_REFUSALS = refusals(_404="The tenant has no such reservation.", _409="The reservation was ended before.")


class NewReservation(BaseModel):
    """How much of which quota to hold, and for how long unless it is committed or released before.

    A ``soft`` reservation is made beyond the limit, too.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"key": "calls", "amount": "2", "window": "day"}]}
    )

    key: Metric
    amount: Amount
    window: Literal["day", "month"] = "day"
    soft: Annotated[bool, Field(strict=True)] = False
    lives_seconds: Annotated[int, Field(strict=True, ge=1, le=_MAX_SECONDS)] = int(RESERVATION_SECONDS)


class ReservationBody(BaseModel):
    """A quantity that is held until ``expires_at``, and the state of its quota with it."""

    id: str
    amount: QuantityText
    expires_at: InstantText
    quota: QuotaBody


class CommitReservation(BaseModel):
    """What was really used; without an amount all that was reserved.

    ``is_recorded``: what was used stands as usage events of the quota's key, which count instead.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"amount": "1.5"}]})

    amount: Amount | None = None
    is_recorded: Annotated[bool, Field(strict=True)] = False


def reservations_router() -> APIRouter:
    """Make the routes of reservations."""
    router = APIRouter(route_class=UnitOfWorkRoute, tags=["entitlements"])
    router.add_api_route(
        "/reservations",
        hold,
        methods=["POST"],
        status_code=201,
        operation_id="billing_reserve_quota",
        responses=refusals(_429="The limit does not allow it, or no active plan says anything of the key."),
    )
    router.add_api_route(
        "/reservations/{reservation_id}/commit",
        keep,
        methods=["POST"],
        status_code=204,
        operation_id="billing_commit_reservation",
        responses=_REFUSALS,
    )
    router.add_api_route(
        "/reservations/{reservation_id}/release",
        give_back,
        methods=["POST"],
        status_code=204,
        operation_id="billing_release_reservation",
        responses=_REFUSALS,
    )
    return router


async def hold(
    wanted: NewReservation, principal: Writer, session: UnitSession, clock: AppClock, response: Response
) -> ReservationBody:
    """Take a quantity of a quota in one atomic step, until it is committed, released or expires."""
    now = clock.now()

    def take(sync_session: Session) -> ReservationBody:
        held = reserve(
            sync_session,
            principal.tenant_id,
            wanted.key,
            wanted.amount,
            now=now,
            window=wanted.window,
            soft=wanted.soft,
            lives_seconds=wanted.lives_seconds,
        )
        reset = (held.quota.period.end - now).total_seconds()
        response.headers.update(rate_limit_headers(held.quota, reset_seconds=reset))
        quota = QuotaBody.of(held.quota)
        return ReservationBody(id=held.id, amount=held.amount, expires_at=held.expires_at, quota=quota)

    return await session.run_sync(take)


async def keep(
    reservation_id: PathId, used: CommitReservation, principal: Writer, session: UnitSession
) -> None:
    """Keep what was reserved, or what was really used, for the rest of the window; again, nothing changes."""
    await session.run_sync(
        commit, principal.tenant_id, reservation_id, amount=used.amount, is_recorded=used.is_recorded
    )


async def give_back(reservation_id: PathId, principal: Writer, session: UnitSession) -> None:
    """Give back what was reserved; one that has expired or was released has been given back already."""
    await session.run_sync(release, principal.tenant_id, reservation_id)
