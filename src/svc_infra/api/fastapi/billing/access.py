"""What billing's routes depend on: a caller with the scope, the time, the database, ids in the path."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Path, Request
from pydantic import StringConstraints
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.usage_gathering import UsageGatherer
from svc_infra.api.fastapi.dependencies import (
    Principal,
    TenantSessions,
    get_clock,
    get_tenant_sessions,
    get_usage_limits,
    require_scope,
)
from svc_infra.billing.usage_limits import UsageLimits
from svc_infra.clock import Clock
from svc_infra.jobs.acts import record_act

MAX_ID_LENGTH = 100


async def get_gatherer(request: Request) -> UsageGatherer:
    """Depend on what records the usage of requests that come at once."""
    gatherer: UsageGatherer = request.app.state.svc_infra_usage
    return gatherer


Reader = Annotated[Principal, Depends(require_scope("billing.read"))]
Writer = Annotated[Principal, Depends(require_scope("billing.write"))]
Sessions = Annotated[TenantSessions, Depends(get_tenant_sessions)]
AppClock = Annotated[Clock, Depends(get_clock)]
Limits = Annotated[UsageLimits, Depends(get_usage_limits)]
Gatherer = Annotated[UsageGatherer, Depends(get_gatherer)]

# No database stores NUL in a text, so no record has it in its name.
Name: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"^[^\x00]*$")
]
PathId = Annotated[Name, Path()]


def record(
    session: Session, principal: Principal, act: str, subject: str, *, now: datetime, **detail: Any
) -> None:
    """Record what a caller does to something of its tenant, in the transaction that does it."""
    record_act(session, act, subject, actor=principal.actor, now=now, tenant_id=principal.tenant_id, **detail)
