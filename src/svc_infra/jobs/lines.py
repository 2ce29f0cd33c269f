"""Lines of waiting jobs: one for each tenant, or for each key of a limit, and within it for each priority.

The jobs at the heads of some lines are found through an index that has the lines in order, going from line to
line and reading none of the jobs behind the heads: however many jobs one tenant has, the others' are found.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from svc_infra.db.base import UtcDateTime
from svc_infra.db.leases import in_state, is_among
from svc_infra.jobs.job import JobState
from svc_infra.jobs.models import JobRateRow
from svc_infra.jobs.rows import ClaimTerms
from svc_infra.jobs.statements import ClaimFilters, is_claimable, jobs

rates = JobRateRow.metadata.tables[JobRateRow.__tablename__]

TENANT, LIMIT = "tenant_id", "limit_key"
"""By which column of the jobs the lines are; each has an index (column, priority, run_at, id)."""

# A look goes along this many lines, and looks at so many jobs of each for one that may be claimed: jobs of a
# paused queue, or for other workers, may stand before it.
_LINES = 32
_DEPTH = 50
_LOOKS = 16
_BEGINNING = ("", -(2**31))


@dataclass
class Place:
    """Where the looks of one claimer are: the next one goes on behind this line, and after the last anew."""

    key: str = _BEGINNING[0]
    priority: int = _BEGINNING[1]


HEAD = (
    jobs.c.id,
    jobs.c.tenant_id,
    jobs.c.priority,
    jobs.c.run_at,
    jobs.c.rescues,
    jobs.c.limit_key,
    jobs.c.limit_slots,
    jobs.c.rate_starts,
    jobs.c.rate_seconds,
)


def look(
    session: Session,
    by: str,
    terms: ClaimTerms,
    *,
    place: Place,
    heads: int,
    passing_over: Collection[str] = (),
) -> list[Any]:
    """Return up to ``heads`` claimable jobs of each of the next lines, line by line, as rows of ``HEAD``.

    Lines of keys in ``passing_over`` are left out. While it finds none it looks further, a bounded number of
    times; ``place`` moves on.
    """
    filters, parameters = terms.conditions()
    bounds: dict[str, Any] = {"lines": _LINES, "heads": heads, "depth": max(_DEPTH, heads)}
    bounds["passing_over"] = list(passing_over)
    for _ in range(_LOOKS):
        after = {"after_key": place.key, "after_priority": place.priority}
        rows = session.execute(heads_statement(by, filters), {**parameters, **bounds, **after}).all()
        last = max(rows, key=lambda row: row.place, default=None)
        is_to_go_on = last is not None and last.place == _LINES
        place.key, place.priority = (last.line, last.line_priority) if last and is_to_go_on else _BEGINNING
        found = [row for row in rows if row.id is not None]
        if found or not is_to_go_on:
            return sorted(found, key=lambda row: (row.place, row.run_at, row.id))
    return []


@cache
def heads_statement(by: str, filters: ClaimFilters) -> Select[Any]:
    """Parameters: those of the filters, ``now``, and what ``look`` binds."""
    lines = _open_lines(_lines(by), by)
    waiting = jobs.alias("waiting")
    head = (
        select(waiting)
        .where(*_is_waiting(waiting, by))
        .where(waiting.c[by] == lines.c.line, waiting.c.priority == lines.c.priority)
        .where(waiting.c.run_at <= bindparam("now", type_=UtcDateTime))
        .where(~lines.c.is_blocked, lines.c.line.not_in(bindparam("passing_over", expanding=True)))
        .order_by(waiting.c.run_at, waiting.c.id)
        .limit(bindparam("depth", type_=Integer))
        .correlate(lines)
        .subquery("head")
    )
    chosen = (
        select(head.c.id)
        .where(*is_claimable(filters, head), _may_start(head, lines, by))
        .limit(bindparam("heads", type_=Integer))
        .correlate(lines)
    )
    line = (lines.c.line, lines.c.priority.label("line_priority"), lines.c.place)
    return select(*line, *HEAD).select_from(lines.outerjoin(jobs, is_among(jobs.c.id, chosen)))


def _may_start(head: FromClause, lines: CTE, by: str) -> ColumnElement[bool]:
    """Whether a slot is free and the rate is not used up; for the lines of keys their lines know it."""
    has_no_limit = head.c.limit_slots.is_(None)
    if by == LIMIT:
        return or_(has_no_limit, lines.c.held < head.c.limit_slots)
    has_slot = or_(has_no_limit, _held(head.c.limit_key) < head.c.limit_slots)
    return or_(head.c.limit_key.is_(None), and_(has_slot, ~_is_blocked(head.c.limit_key)))


def _lines(by: str) -> CTE:
    """Go from line to line, each a step in the index: the next priority of the key, or else the next key."""
    first = jobs.alias("first")
    behind = tuple_(bindparam("after_key", type_=String), bindparam("after_priority", type_=Integer))
    start = (
        select(first.c[by].label("line"), first.c.priority, literal_column("1", Integer).label("place"))
        .where(*_is_waiting(first, by), tuple_(first.c[by], first.c.priority) > behind)
        .order_by(first.c[by], first.c.priority)
        .limit(1)
        .subquery("start")
    )
    lines = select(start).cte("lines", recursive=True)
    same, following = jobs.alias("same"), jobs.alias("following")
    next_priority = (
        select(same.c.priority)
        .where(*_is_waiting(same, by), same.c[by] == lines.c.line, same.c.priority > lines.c.priority)
        .order_by(same.c.priority)
        .limit(1)
        .scalar_subquery()
    )

    def of_next_key(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return (
            select(column)
            .where(*_is_waiting(following, by), following.c[by] > lines.c.line)
            .order_by(following.c[by], following.c.priority)
            .limit(1)
            .scalar_subquery()
        )

    return lines.union_all(
        select(
            case((next_priority.is_not(None), lines.c.line), else_=of_next_key(following.c[by])),
            func.coalesce(next_priority, of_next_key(following.c.priority)),
            lines.c.place + 1,
        ).where(lines.c.place < bindparam("lines", type_=Integer), lines.c.line.is_not(None))
    )


def _open_lines(lines: CTE, by: str) -> CTE:
    """The lines with what holds up all of one: slots that are held, and a rate that is used up."""
    is_blocked = _is_blocked(lines.c.line) if by == LIMIT else false()
    held = _held(lines.c.line) if by == LIMIT else literal_column("0", Integer)
    return (
        select(lines, held.label("held"), is_blocked.label("is_blocked"))
        .where(lines.c.line.is_not(None))
        .cte("open_lines")
        .prefix_with("MATERIALIZED")
    )


def _is_waiting(table: Any, by: str) -> Sequence[ColumnElement[bool]]:
    """The conditions of the partial index."""
    return in_state(table, JobState.AVAILABLE.value), table.c[by].is_not(None)


def _held(key: ColumnElement[Any]) -> ColumnElement[int]:
    running = jobs.alias("running")
    return (
        select(func.count())
        .select_from(running)
        .where(running.c.limit_key == key, running.c.slot.is_not(None))
        .scalar_subquery()
    )


def _is_blocked(key: ColumnElement[Any]) -> ColumnElement[bool]:
    is_later = rates.c.blocked_until > bindparam("now", type_=UtcDateTime)
    # A value and not EXISTS, for which PostgreSQL would read the whole table into a hash table.
    return select(rates.c.key).where(rates.c.key == key, is_later).scalar_subquery().is_not(None)
