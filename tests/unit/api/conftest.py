"""An application with billing mounted on the test's database."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.clock import FixedClock
from tests.unit.api.asking import principal_of


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(datetime(2025, 1, 1, 12, tzinfo=UTC))


@pytest.fixture
def app(session_factory: async_sessionmaker[AsyncSession], clock: FixedClock) -> FastAPI:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=principal_of, clock=clock)
    return app
