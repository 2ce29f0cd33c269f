"""Writing usage events: one statement that skips the keys that are taken and marks the days of the others.

On PostgreSQL it is a text of our own, sent past the expression compiler: recording a single event is mostly
overhead, and this is where it would be. Each column goes as a JSON array of texts, like a ``Rowset``'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import DateTime, Insert, Numeric, String, Text, bindparam, exists, select, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session

from svc_infra.billing.columns import KEY_LENGTH, MetricText, TenantText
from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_models import ArchivedUsage, TenantErasure, UsageEvent
from svc_infra.db.base import QUANTITY_DIGITS, QUANTITY_SCALE, IdText, UtcDateTime
from svc_infra.db.rowset import Rowset, json_column

EVENT_COLUMNS = ("tenant_id", "metric", "idempotency_key", "id", "amount", "at_ts", "metadata_json")
# Plain types: the values were brought into their stored form when the event was checked.
_EVENTS = Rowset(
    "new_events",
    tenant_id=TenantText,
    metric=MetricText,
    idempotency_key=String(KEY_LENGTH),
    id=IdText,
    amount=Numeric(QUANTITY_DIGITS, QUANTITY_SCALE),
    at_ts=DateTime(timezone=True),
    metadata_json=Text,
)
_CHANGES = text("SELECT changes()")

# A key of the archive stays taken. It is looked up by a scalar subquery, which no plan turns into a join that
# reads the whole archive.
# Days of tenants in UTC, which is every tenant without a row, are cut here. Those of other zones are cut by
# the caller with Python's zones: the server's own table of zones may be of another year.
# Where $10 says so and a tenant is in another zone, nothing is written at all.
INSERT_AND_MARK = """
WITH zoned AS MATERIALIZED (
  SELECT t.tenant_id FROM tenants t
  WHERE t.tenant_id = ANY($9::varchar[]) AND t.timezone <> 'UTC'
), new AS MATERIALIZED (
  SELECT tenant_id, metric, idempotency_key, id, amount::numeric(38, 12) AS amount,
         at_ts::timestamptz AS at_ts, metadata_json
  FROM ROWS FROM (
    json_array_elements_text($1::text::json), json_array_elements_text($2::text::json),
    json_array_elements_text($3::text::json), json_array_elements_text($4::text::json),
    json_array_elements_text($5::text::json), json_array_elements_text($6::text::json),
    json_array_elements_text($7::text::json)
  ) AS n(tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json)
  WHERE tenant_id NOT IN (SELECT e.tenant_id FROM tenant_erasures e WHERE e.tenant_id = ANY($9::varchar[]))
    AND NOT ($10::boolean AND EXISTS (SELECT 1 FROM zoned))
    AND (SELECT a.id FROM usage_archive a WHERE a.tenant_id = n.tenant_id AND a.metric = n.metric
         AND a.idempotency_key = n.idempotency_key) IS NULL
), inserted AS (
  INSERT INTO usage_events
    (tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json, created_at)
  SELECT tenant_id, metric, idempotency_key, id, amount, at_ts, metadata_json, $8::timestamptz FROM new
  ON CONFLICT DO NOTHING
  RETURNING tenant_id, metric, at_ts
), marked AS (
  INSERT INTO usage_dirty_days (tenant_id, metric, day_start, day_end)
  SELECT tenant_id, metric, day_start, day_start + interval '24 hours'
  FROM (SELECT DISTINCT tenant_id, metric, date_trunc('day', at_ts, 'UTC') AS day_start FROM inserted) AS days
  WHERE tenant_id NOT IN (SELECT tenant_id FROM zoned)
)
SELECT (SELECT count(*) FROM inserted) AS inserted, (SELECT array_agg(tenant_id) FROM zoned) AS zoned
"""


class Written(NamedTuple):
    """How many events were new, and the tenants whose days are still to be marked."""

    inserted: int
    unmarked: Collection[str]


def insert_usage(
    session: Session, new: Sequence[tuple[str, NewUsage]], now: datetime, *, only_whole: bool = False
) -> Written:
    """Write the (id, event)s whose keys are free, in the session's transaction; none of an erased tenant.

    They are in key order, so that two batches with the same keys never wait for each other in a circle. With
    ``only_whole`` nothing is written on PostgreSQL where days would be left to mark.
    """
    connection = session.connection()
    tenant_ids = {event.tenant_id for _, event in new}
    if connection.dialect.name == "postgresql":
        row = connection.exec_driver_sql(INSERT_AND_MARK, (*_arrays(new, now, tenant_ids), only_whole)).one()
        return Written(row.inserted, row.zoned or ())
    rows = [
        (e.tenant_id, e.metric, e.idempotency_key, event_id, e.amount, e.at, e.metadata_json)
        for event_id, e in new
    ]
    connection.execute(_insert_on_sqlite(), {**_EVENTS.parameters("sqlite", rows), "now": now})
    # The driver counts the rows only of statements that begin with INSERT, and returning them all would halve
    # the rate.
    return Written(int(connection.execute(_CHANGES).scalar_one()), tenant_ids)


def _arrays(new: Sequence[tuple[str, NewUsage]], now: datetime, tenant_ids: set[str]) -> tuple[object, ...]:
    events = [event for _, event in new]
    columns: tuple[list[str | None], ...] = (
        [event.tenant_id for event in events],
        [event.metric for event in events],
        [event.idempotency_key for event in events],
        [event_id for event_id, _ in new],
        [str(event.amount) for event in events],
        [event.at.isoformat() for event in events],
        [event.metadata_json for event in events],
    )
    return (*map(json_column, columns), now, list(tenant_ids))


@cache
def _insert_on_sqlite() -> Insert:
    new = _EVENTS.table("sqlite")
    columns = [new.c[name] for name in EVENT_COLUMNS]
    # SQLite's grammar needs the WHERE to tell ON CONFLICT from a join's ON.
    erased = select(TenantErasure.tenant_id)
    old = ArchivedUsage.__table__.c
    archived = exists().where(
        old.tenant_id == new.c.tenant_id,
        old.metric == new.c.metric,
        old.idempotency_key == new.c.idempotency_key,
    )
    rows = select(*columns, bindparam("now", type_=UtcDateTime)).where(
        new.c.tenant_id.not_in(erased), ~archived
    )
    return (
        sqlite.insert(UsageEvent).from_select([*EVENT_COLUMNS, "created_at"], rows).on_conflict_do_nothing()
    )
