"""``require_quota``: a FastAPI dependency that takes one of the plan's limit, or refuses the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from fastapi import Depends, Response
from sqlalchemy.orm import Session

from svc_infra.billing.entitlements import (
    WINDOWS,
    Quota,
    Reservation,
    Use,
    Window,
    commit,
    quota_of,
    release,
    reserve,
    take_back,
    use,
    use_alone,
)
from svc_infra.billing.quota_headers import rate_limit_headers
from svc_infra.db.session import commit_each_statement
from svc_infra.exceptions import InvalidSettings

EXCEEDED_HEADER = "X-Quota-Exceeded"


def require_quota(
    key: str,
    *,
    window: Window = "day",
    soft: bool = False,
    amount: int | str | Decimal = 1,
    records_usage: bool = False,
) -> Callable[..., AsyncIterator[None]]:
    """Make a dependency that takes ``amount`` of the tenant's quota of ``key`` before the endpoint runs.

    The limit is the entitlement of the plans that the tenant is on, for the tenant's local ``day`` or
    ``month``. However many requests come at once, the limit is not exceeded: the request that would is
    refused (the API answers 429) or, if ``soft`` or the entitlement is, let through with the header
    ``X-Quota-Exceeded``. Both answers say in ``RateLimit`` what is left and when the window is renewed. An
    endpoint that raises gives back what was taken for it; where the process dies instead, it stays taken.
    Usage that was recorded with the metric ``key`` counts, too. An endpoint that records its own usage of
    ``key`` says so with ``records_usage``: it is held by a reservation then, and what the endpoint recorded
    counts instead, and not beside it.

    Without a plan that says anything of the key and window, the request is refused, soft or not, unless the
    setting ``billing.quotas_without_entitlement`` is ``allow``.

    Raises:
        InvalidSettings: the window is neither ``day`` nor ``month``.
    """
    # From the layer above, as the specification places this file: it is loaded when there is an API.
    from svc_infra.api.fastapi.dependencies import (
        get_billing_settings,
        get_clock,
        get_principal,
        get_tenant_sessions,
    )

    if window not in WINDOWS:
        raise InvalidSettings(f"the window of quota {key!r} is {window!r}; use 'day' or 'month'")

    async def hold(
        response: Response,
        principal: Any = Depends(get_principal),
        sessions: Any = Depends(get_tenant_sessions),
        clock: Any = Depends(get_clock),
        settings: Any = Depends(get_billing_settings),
    ) -> AsyncIterator[None]:
        allows_unknown = settings.quotas_without_entitlement == "allow"
        asked = _Asked(principal.tenant_id, key, window, amount, soft, allows_unknown, records_usage)
        held = await _hold(sessions, asked, clock.now())
        if held is None:
            yield
            return
        response.headers.update(_told(held.quota, clock.now()))
        try:
            yield
        except BaseException:
            await _end(sessions, held, is_done=False)
            raise
        await _end(sessions, held, is_done=True)

    return hold


def _told(quota: Quota, now: datetime) -> dict[str, str]:
    """What the answer says of the quota."""
    headers = rate_limit_headers(quota, reset_seconds=(quota.period.end - now).total_seconds())
    return headers | ({EXCEEDED_HEADER: str(quota)} if quota.is_exceeded else {})


class _Asked(NamedTuple):
    tenant_id: str
    key: str
    window: Window
    amount: int | str | Decimal
    soft: bool
    allows_unknown: bool
    records_usage: bool


async def _hold(sessions: Any, asked: _Asked, now: datetime) -> Reservation | Use | None:
    # A role is put on for the length of a transaction, so that there has to be one.
    if not (asked.records_usage or sessions.is_held):
        async with sessions.begin() as session:
            used: Use | None = await session.run_sync(_use_alone, asked, now)
        if used is not None:
            return used
    async with sessions.begin() as session:
        held: Reservation | Use | None = await session.run_sync(_take, asked, now)
    return held


def _use_alone(session: Session, asked: _Asked, now: datetime) -> Use | None:
    commit_each_statement(session)
    tenant_id, key, window = asked.tenant_id, asked.key, asked.window
    return use_alone(session, tenant_id, key, asked.amount, window=window, soft=asked.soft, now=now)


def _take(session: Session, asked: _Asked, now: datetime) -> Reservation | Use | None:
    """What was taken for a request, or None where nothing is entitled and that is allowed."""
    tenant_id, key, window = asked.tenant_id, asked.key, asked.window
    if asked.allows_unknown and quota_of(session, tenant_id, key, window, now=now) is None:
        return None
    # What is used up at once needs no second transaction at the end. An event that is to count instead does.
    taking: Callable[..., Reservation | Use] = reserve if asked.records_usage else use
    return taking(session, tenant_id, key, asked.amount, window=window, soft=asked.soft, now=now)


async def _end(sessions: Any, held: Reservation | Use, *, is_done: bool) -> None:
    """Give back what was taken for what was not done; of what was done, commit the reservation."""

    def end(session: Session) -> None:
        if isinstance(held, Use):
            take_back(session, held)
        elif is_done:
            commit(session, held.tenant_id, held.id, is_recorded=True)
        else:
            release(session, held.tenant_id, held.id)

    if not (is_done and isinstance(held, Use)):
        async with sessions.begin() as session:
            await session.run_sync(end)
