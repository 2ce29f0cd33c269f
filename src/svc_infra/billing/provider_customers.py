"""Who a tenant is at a payment provider: stored once, whoever finds out first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.billing.provider_models import ProviderCustomer


def customer_of(session: Session, tenant_id: str, provider: str) -> str | None:
    """The provider's id of a tenant, or None before its first invoice was mirrored."""
    mapped = select(ProviderCustomer.customer_id).where(
        ProviderCustomer.tenant_id == tenant_id, ProviderCustomer.provider == provider
    )
    return session.scalar(mapped)


def map_customer(session: Session, tenant_id: str, provider: str, customer_id: str, *, now: datetime) -> str:
    """Store which customer a tenant is and return it; one that was stored before stays.

    An application whose customers exist at the provider maps them before their first invoice.
    """
    upsert: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    row = {
        "tenant_id": tenant_id,
        "provider": provider,
        "customer_id": customer_id,
        "created_at": now,
    }
    session.execute(upsert(ProviderCustomer).values(row).on_conflict_do_nothing())
    return customer_of(session, tenant_id, provider) or customer_id
