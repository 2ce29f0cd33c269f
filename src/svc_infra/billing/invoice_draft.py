"""An invoice on its way to being written: what was asked for, and what is known of it so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Session

from svc_infra.billing.columns import CALENDAR_CYCLE
from svc_infra.billing.cycles import Cycle, parse_cycle
from svc_infra.billing.invoice_lines import Line, LinePlan
from svc_infra.billing.invoice_models import PendingLine
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.periods import Period, day_bounds, is_local_midnight
from svc_infra.billing.tenant_lock import LockedTenant
from svc_infra.exceptions import InvalidPeriod, SvcInfraError

PERIOD_KIND, ADJUSTMENT_KIND = "period", "adjustment"


@dataclass(frozen=True, slots=True)
class InvoiceRequest:
    """A period to be invoiced in a currency: half-open, both bounds midnights of the tenant's zone.

    ``cycle`` names the billing cycle whose subscriptions are billed: the calendar's, or one with an anchor.
    """

    tenant_id: str
    period_start: datetime
    period_end: datetime
    currency: str
    cycle: str = CALENDAR_CYCLE


@dataclass(slots=True)
class Draft:
    """One identity on its way to an invoice, or to the error that refuses it."""

    tenant_id: str
    currency: str
    cycle: Cycle
    period: Period
    tenant: LockedTenant
    kind: str = PERIOD_KIND
    invoice_id: str | None = None
    created_at: datetime | None = None
    is_new: bool = False
    is_issued: bool = False
    error: SvcInfraError | None = None
    plans: list[LinePlan] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    pending: list[PendingLine] = field(default_factory=list)
    total: int = 0

    @property
    def zone(self) -> tzinfo:
        """The tenant's zone."""
        return self.tenant.zone

    @property
    def is_due(self) -> bool:
        """Whether it is still to be made."""
        return self.invoice_id is None and self.error is None

    @property
    def finalize_after(self) -> datetime:
        """The instant from which it may be issued: the tenant's grace after the end of the period."""
        return self.period.end + timedelta(seconds=self.tenant.grace_seconds)

    def __str__(self) -> str:
        return f"tenant {self.tenant_id!r}, {period_text(self.period)}"


Identity = tuple[str, str, str, Period]


def draft_of(
    request: InvoiceRequest, tenant: LockedTenant, drafts: dict[Identity, Draft]
) -> Draft | SvcInfraError:
    """The draft of the request's identity, new or of an equal request before; the error of a bad request."""
    try:
        currency, cycle = normalize_currency(request.currency), parse_cycle(request.cycle)
        period = _period_between(request.period_start, request.period_end, tenant.zone)
    except SvcInfraError as error:
        return error
    identity = (request.tenant_id, currency, cycle.name, period)
    if identity not in drafts:
        drafts[identity] = Draft(request.tenant_id, currency, cycle, period, tenant)
    return drafts[identity]


def request_rows(drafts: Iterable[Draft]) -> list[tuple[Any, ...]]:
    """The drafts as rows of ``statements.REQUESTS``, by position."""
    return [
        (position, draft.tenant_id, draft.cycle.name, draft.currency, draft.period.start, draft.period.end)
        for position, draft in enumerate(drafts)
    ]


def execute(session: Session, statement: Any, rowset: Any, rows: Sequence[Any], **parameters: Any) -> Any:
    """Run a statement of ``invoice_statements`` over the rows of a rowset."""
    dialect = session.get_bind().dialect.name
    return session.execute(statement(dialect), {**rowset.parameters(dialect, rows), **parameters})


def period_text(period: Period) -> str:
    """A period as it is named in errors."""
    return f"{period.start.isoformat()} to {period.end.isoformat()}"


@lru_cache(maxsize=256)
def _period_between(start: datetime, end: datetime, zone: tzinfo) -> Period:
    """The period, the same object for all tenants of a zone; InvalidPeriod if a bound is no midnight."""
    period = Period(start, end)
    for bound in (period.start, period.end):
        if not is_local_midnight(bound, zone):
            day = day_bounds(bound, zone)
            raise InvalidPeriod(
                f"{bound.isoformat()} is not a midnight of the tenant's zone ({zone}); "
                f"the nearest are {day.start.isoformat()} and {day.end.isoformat()}"
            )
    return period
