"""What was used of the planned lines of a batch of drafts, in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing import invoice_statements as statements
from svc_infra.billing.invoice_draft import Draft, execute
from svc_infra.billing.invoice_lines import USAGE, LinePlan, Measured
from svc_infra.billing.models import UsageEvent

_MeasuredLines = dict[int, list[Measured]]


def measure(session: Session, drafts: Sequence[Draft]) -> list[_MeasuredLines]:
    """The usage of each draft's planned usage lines, by their position in ``plans``."""
    asked: list[tuple[int, int, LinePlan]] = []
    rows = []
    for at, draft in enumerate(drafts):
        for position, plan in enumerate(draft.plans):
            if plan.kind == USAGE:
                metric = plan.price.terms.metric
                rows.append((len(asked), draft.tenant_id, metric, plan.period.start, plan.period.end))
                asked.append((at, position, plan))
    measured: list[_MeasuredLines] = [defaultdict(list) for _ in drafts]
    if not rows:
        return measured
    for position, quantity in execute(session, statements.usage_sums, statements.SUMS, rows):
        if quantity is not None:
            at, line, plan = asked[position]
            events = None
            if plan.price.terms.per_event is not None:
                events = _events(session, drafts[at].tenant_id, plan)
            measured[at][line].append(Measured(quantity, events=events))
    return measured


def _events(session: Session, tenant_id: str, plan: LinePlan) -> tuple[Decimal, ...]:
    statement = (
        select(UsageEvent.amount)
        .where(
            UsageEvent.tenant_id == tenant_id,
            UsageEvent.metric == plan.price.terms.metric,
            UsageEvent.at_ts >= plan.period.start,
            UsageEvent.at_ts < plan.period.end,
        )
        .order_by(UsageEvent.at_ts, UsageEvent.id)
    )
    return tuple(session.scalars(statement))
