"""The table of who a tenant is at a payment provider."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import PrimaryKeyConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from svc_infra.billing.models import TenantText
from svc_infra.db.base import Base, UtcDateTime


class ProviderCustomer(Base):
    """The customer that mirrors a tenant at a provider."""

    __tablename__ = "provider_customers"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "provider"),)

    tenant_id: Mapped[str] = mapped_column(TenantText)
    provider: Mapped[str] = mapped_column(String(20))
    customer_id: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
