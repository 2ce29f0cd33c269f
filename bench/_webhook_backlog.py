"""Many deliveries due to an endpoint that takes only a few of them a second."""

from __future__ import annotations

from _webhook_shop import Shop

_MESSAGES = """
INSERT INTO outbox_messages (id, topic, tenant_id, body, occurred_at, state)
SELECT 'msg_' || lpad(n::text, 32, '0'), 'billing.invoice.created', 'tenant_0',
       convert_to('{"type":"billing.invoice.created","timestamp":"2025-01-01T00:00:00Z","data":{"n":'
                  || n || '}}', 'UTF8'),
       now() - interval '1 day', 'relayed'
FROM generate_series(1, CAST(:count AS integer)) AS n
"""
_DELIVERIES = """
INSERT INTO webhook_deliveries (id, message_id, endpoint_id, tenant_id, state, run_at, attempt, rescues,
                                created_at)
SELECT substr(id, 5), id, :endpoint_id, tenant_id, 'pending', occurred_at, 0, 0, occurred_at
FROM outbox_messages
"""
RATE_PER_SECOND = 10


async def add_backlog(shop: Shop, endpoint_id: str, count: int) -> None:
    """Make so many deliveries due to an endpoint, and hold it to its rate."""
    await shop.execute(_MESSAGES, count=count)
    await shop.execute(_DELIVERIES, endpoint_id=endpoint_id)
    rated = "UPDATE webhook_endpoints SET rate_per_second = :rate WHERE id = :id"
    await shop.execute(rated, rate=RATE_PER_SECOND, id=endpoint_id)
    await shop.execute("ANALYZE")
