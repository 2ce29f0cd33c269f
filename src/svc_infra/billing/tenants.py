"""A tenant's settings. A tenant without a row has the defaults: UTC, late usage carried forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any

from sqlalchemy import Select, exists, or_, select
from sqlalchemy.orm import Session

from svc_infra.billing.models import Invoice, Subscription, Tenant, UsageEvent
from svc_infra.billing.periods import zone
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.billing.usage_lock import hold_back_usage
from svc_infra.db.base import TENANT_ID_LENGTH
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import InvalidPeriod, InvalidSettings

LATE_POLICIES = ("carry_forward", "grace", "reject")

_TENANTS = Rowset("asked", tenant_id=Tenant.tenant_id.type)


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """How a tenant is billed.

    ``timezone`` is the IANA zone whose midnights bound its days and periods; ``late_policy`` says what
    becomes of usage that arrives after its period was invoiced; ``grace_seconds`` how long after the end of
    a period its invoice stays a draft; ``number_series`` begins its invoice numbers; ``due_days`` is the time
    to pay.
    """

    timezone: str = "UTC"
    late_policy: str = "carry_forward"
    grace_seconds: int = 0
    number_series: str = "INV"
    due_days: int = 0


DEFAULTS = TenantSettings()


def zones_of(session: Session, tenant_ids: Iterable[str]) -> dict[str, tzinfo]:
    """Return the zone of each tenant asked for, in one statement; UTC for one without settings."""
    dialect = session.get_bind().dialect.name
    zones: dict[str, tzinfo] = dict.fromkeys(tenant_ids, UTC)
    if zones:
        parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in zones])
        for row in session.execute(_zones(dialect), parameters):
            zones[row.tenant_id] = zone(row.timezone)
    return zones


def settings_of(session: Session, tenant_id: str) -> TenantSettings:
    """Return the settings of a tenant, the defaults if it has none of its own."""
    row = session.get(Tenant, tenant_id)
    return DEFAULTS if row is None else _settings_in(row)


def change_settings(
    session: Session,
    tenant_id: str,
    *,
    now: datetime,
    timezone: str | None = None,
    late_policy: str | None = None,
    grace_seconds: int | None = None,
    number_series: str | None = None,
    due_days: int | None = None,
) -> TenantSettings:
    """Change what is given, keep the rest, and return the settings as they are now.

    The zone is fixed once the tenant has usage, a subscription or an invoice: its days were cut at the old
    midnights, and a change would leave a gap or an overlap of some hours.

    Raises:
        InvalidSettings: a value cannot be used, or the zone is fixed already.
    """
    if not isinstance(tenant_id, str) or not 0 < len(tenant_id) <= TENANT_ID_LENGTH:
        raise InvalidSettings(f"a tenant id has 1 to {TENANT_ID_LENGTH} characters, got {tenant_id!r:.80}")
    given: dict[str, Any] = {
        "timezone": timezone,
        "late_policy": late_policy,
        "grace_seconds": grace_seconds,
        "number_series": number_series,
        "due_days": due_days,
    }
    lock_tenants(session, [tenant_id], now=now)
    row = session.get_one(Tenant, tenant_id, populate_existing=True)
    old = _settings_in(row)
    new = replace(old, **{name: value for name, value in given.items() if value is not None})
    _check(new)
    if new.timezone != old.timezone:
        _refuse_if_billed(session, tenant_id, old.timezone)
    row.timezone, row.late_policy = new.timezone, new.late_policy
    row.grace_seconds, row.number_series = new.grace_seconds, new.number_series
    row.due_days = new.due_days
    session.flush()
    return new


def _check(settings: TenantSettings) -> None:
    try:
        zone(settings.timezone)
    except InvalidPeriod as error:
        raise InvalidSettings(str(error)) from None
    if settings.late_policy not in LATE_POLICIES:
        raise InvalidSettings(f"late_policy is {settings.late_policy!r}; use {', '.join(LATE_POLICIES)}")
    if settings.grace_seconds < 0:
        raise InvalidSettings(f"grace_seconds is {settings.grace_seconds}; it cannot be negative")
    if settings.due_days < 0:
        raise InvalidSettings(f"due_days is {settings.due_days}; it cannot be negative")
    # Credit notes are numbered in a series of their own, which is CN- and this.
    if not 0 < len(settings.number_series) <= 37 or settings.number_series.startswith("CN-"):
        raise InvalidSettings(
            f"number_series {settings.number_series!r} must have 1 to 37 characters and not begin with CN-"
        )


def _refuse_if_billed(session: Session, tenant_id: str, current: str) -> None:
    # Whoever records usage reads the zone after its insert, which now waits for us: so either we see its
    # events or it sees our zone.
    hold_back_usage(session)
    bound_to_its_days = (
        exists().where(model.tenant_id == tenant_id) for model in (UsageEvent, Invoice, Subscription)
    )
    if session.execute(select(or_(*bound_to_its_days))).scalar_one():
        raise InvalidSettings(
            f"tenant {tenant_id!r} has usage, a subscription or an invoice in the zone {current}, so its "
            "zone is fixed; to bill the customer in another one, use a new tenant id"
        )


def _settings_in(row: Tenant) -> TenantSettings:
    return TenantSettings(row.timezone, row.late_policy, row.grace_seconds, row.number_series, row.due_days)


@cache
def _zones(dialect: str) -> Select[str, str]:
    asked = _TENANTS.table(dialect)
    return select(Tenant.tenant_id, Tenant.timezone).where(
        Tenant.tenant_id == asked.c.tenant_id, Tenant.timezone != "UTC"
    )
