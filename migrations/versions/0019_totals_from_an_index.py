"""Corrections keep the amount of their event, and an index has all that the total of a day asks for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, sa.types.TypeEngine] = {
    "metric": sa.String(length=200),
    "at_ts": sa.DateTime(timezone=True),
    "amount": sa.Numeric(38, 12).with_variant(sa.String(40), "sqlite"),
}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("usage_corrections", sa.Column(name, kind, nullable=True))
    for name in _COLUMNS:
        op.execute(
            f"UPDATE usage_corrections SET {name} = (SELECT e.{name} FROM usage_events e"
            " WHERE e.tenant_id = usage_corrections.tenant_id AND e.id = usage_corrections.event_id)"
        )
    with op.batch_alter_table("usage_corrections") as batch:
        for name, kind in _COLUMNS.items():
            batch.alter_column(name, existing_type=kind, nullable=False)
    op.create_index("ix_usage_corrections_day", "usage_corrections", ["tenant_id", "metric", "at_ts"])
    op.drop_index("ix_usage_events_tenant_id", "usage_events")
    op.create_index("ix_usage_events_tenant_id", "usage_events", ["tenant_id", "metric", "at_ts", "amount"])


def downgrade() -> None:
    op.drop_index("ix_usage_events_tenant_id", "usage_events")
    op.create_index("ix_usage_events_tenant_id", "usage_events", ["tenant_id", "metric", "at_ts"])
    op.drop_index("ix_usage_corrections_day", "usage_corrections")
    for name in _COLUMNS:
        op.drop_column("usage_corrections", name)
