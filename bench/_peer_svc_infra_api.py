"""The public peer's billing router on uvicorn: run by ``api.py`` in the peers' environment.

python _peer_svc_infra_api.py URL PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.db.sql.session import initialize_session
from svc_infra.billing import UsageEvent
from svc_infra.db.sql.base import ModelBase


async def make_tables(url: str) -> None:
    engine = create_async_engine(url)
    names = [name for name in ModelBase.metadata.tables if name.startswith("billing_")]
    assert UsageEvent.__tablename__ in names
    async with engine.begin() as connection:
        tables = [ModelBase.metadata.tables[name] for name in names]
        await connection.run_sync(lambda sync: ModelBase.metadata.create_all(sync, tables=tables))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(make_tables(sys.argv[1]))
    initialize_session(sys.argv[1])
    app = FastAPI()
    add_billing(app)
    uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="warning")
