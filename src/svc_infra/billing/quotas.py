"""``require_quota``: a FastAPI dependency that refuses a request when the plan's limit is used up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, Response

from svc_infra.billing.entitlements import WINDOWS, Quota, Window, quota_of
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.exceptions import InvalidSettings, QuotaExceeded

EXCEEDED_HEADER = "X-Quota-Exceeded"


def require_quota(key: str, *, window: Window = "day", soft: bool = False) -> Callable[..., Awaitable[None]]:
    """Make a dependency that asks for room in the tenant's quota of ``key``.

    The limit is the entitlement of the plan that the tenant is on, for the tenant's local ``day`` or
    ``month``; what is used is what was recorded with the metric ``key``. At the limit a request is refused
    (the API answers 429) or, if ``soft``, let through with the header ``X-Quota-Exceeded``. Without a
    subscription, or without an entitlement of this key and window, it is refused, soft or not.

    Nothing is reserved yet: requests that come at the same instant may both see the last unit free.

    Raises:
        InvalidSettings: the window is neither ``day`` nor ``month``.
    """
    # From the layer above, as the specification places this file: it is loaded when there is an API.
    from svc_infra.api.fastapi.dependencies import get_clock, get_principal, get_session_factory

    if window not in WINDOWS:
        raise InvalidSettings(f"the window of quota {key!r} is {window!r}; use 'day' or 'month'")

    async def check(
        response: Response,
        principal: Any = Depends(get_principal),
        sessions: Any = Depends(get_session_factory),
        clock: Any = Depends(get_clock),
    ) -> None:
        async with sessions() as session:
            quota = await session.run_sync(quota_of, principal.tenant_id, key, window, now=clock.now())
        if quota is None:
            raise QuotaExceeded(
                f"no plan of this tenant includes {key!r} per {window}; subscribe to one that does"
            )
        if not quota.is_used_up:
            return
        if not soft:
            raise QuotaExceeded(
                f"{_state(quota)}; it is renewed at {canonical_instant(quota.period.end)}, or change the plan"
            )
        response.headers[EXCEEDED_HEADER] = _state(quota)

    return check


def _state(quota: Quota) -> str:
    return f"{canonical_decimal(quota.used)} of {quota.limit} {quota.key} used in this {quota.window}"
