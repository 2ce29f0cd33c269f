"""One endpoint with and without ``require_quota``: ``python bench/_api_quota.py URL PORT``."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

import uvicorn
from fastapi import Depends, FastAPI

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.dependencies import Principal
from svc_infra.billing.catalog import parse_catalog
from svc_infra.billing.catalog_store import apply_catalog
from svc_infra.billing.quotas import require_quota
from svc_infra.billing.subscriptions import NewSubscription, subscribe_many
from svc_infra.db.session import make_engine, make_session_factory
from svc_infra.logs import configure_logging

NOW = datetime(2025, 1, 1, tzinfo=UTC)
CATALOG = """
[[plans]]
key = "p"
default = true
entitlements = [{ key = "reports", limit = 1000000000, window = "day" }]
"""


async def prepare(url: str) -> None:
    engine = make_engine(url)
    async with make_session_factory(engine).begin() as session:
        await session.run_sync(apply_catalog, parse_catalog(CATALOG), now=NOW)
        await session.run_sync(subscribe_many, [NewSubscription("t", "p", NOW)], now=NOW)
    await engine.dispose()


def make_app(url: str) -> FastAPI:
    app = FastAPI()
    add_billing(
        app, session_factory=make_session_factory(make_engine(url)), principal=lambda _: Principal("t")
    )

    async def report() -> dict[str, bool]:
        return {"ok": True}

    app.add_api_route("/bare", report)
    app.add_api_route("/held", report, dependencies=[Depends(require_quota("reports"))])
    return app


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(prepare(sys.argv[1]))
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), access_log=False, log_level="warning")
