"""``billing.quota.threshold``: told once when a share of a quota's limit is reached in a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.quota_statements import given
from svc_infra.billing.schemas import QuotaThreshold
from svc_infra.db.outbox import OutboxMessage, SqlOutboxStore
from svc_infra.webhooks.message import encode_body, new_message_id
from svc_infra.webhooks.service import Publication

QUOTA_THRESHOLD = "billing.quota.threshold"


class Publisher(Protocol):
    """What quotas ask of the webhook service."""

    def publish_many(self, session: Session, publications: Sequence[Publication]) -> list[str]:
        """Publish with the commit of ``session``."""
        ...


def crossed(percents: Iterable[int], alerted_percent: int, limit: int | None, used: Decimal) -> list[int]:
    """The thresholds that ``used`` has reached and that were not announced, rising."""
    if not limit:
        return []  # of nothing or of everything there are no shares
    return [each for each in percents if each > alerted_percent and used * 100 >= each * limit]


def publish_crossed(
    session: Session,
    webhooks: Publisher | None,
    percents: Sequence[int],
    window: dict[str, Any],
    limit: int | None,
    used: Decimal,
    *,
    now: datetime,
) -> None:
    """Announce ``percents`` with the commit of ``session``, whose transaction holds the window's row."""
    if not percents or limit is None:
        return
    session.connection().execute(statements.note_alert(), window | given(percent=percents[-1]))
    named = {name.removeprefix("of_"): value for name, value in window.items()}
    publications = [
        Publication(
            QUOTA_THRESHOLD,
            QuotaThreshold(**named, percent=percent, limit=limit, used=used).to_payload(),
            named["tenant_id"],
            now,
        )
        for percent in percents
    ]
    if webhooks is not None:
        webhooks.publish_many(session, publications)
        return
    messages = [
        OutboxMessage(
            new_message_id(), each.topic, each.tenant_id, encode_body(each.topic, now, each.payload), now
        )
        for each in publications
    ]
    SqlOutboxStore().add(messages, session=session)
