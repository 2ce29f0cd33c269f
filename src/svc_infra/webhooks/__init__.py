"""Signed webhooks from an outbox in the application's own database.

A message is published in the transaction of the change that it announces, relayed to the endpoints that want
its topic, and delivered at least once to each, with the same id and the same bytes. Owns endpoints,
deliveries and their attempts; does not own what the messages say (that is whoever publishes) nor the outbox
table (``svc_infra.db.outbox``).
"""

from __future__ import annotations

from svc_infra.webhooks.signature import verify

__all__ = ["verify"]
