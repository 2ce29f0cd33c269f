"""Mounting billing: where, on which database, and who tells who is asking."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.dependencies import Principal, get_principal
from svc_infra.exceptions import InvalidSettings
from tests.unit.api.asking import ONE, client_of, principal_of

Sessions = async_sessionmaker[AsyncSession]
USAGE = {"metric": "tokens", "amount": 1, "idempotency_key": "k"}
LIST = "/_billing/usage?metric=tokens"


async def status_of(app: FastAPI, path: str = LIST) -> int:
    async with client_of(app, ONE) as client:
        return (await client.get(path)).status_code


@pytest.mark.sqlite_only
async def test_the_prefix_is_where_it_is(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=principal_of, prefix="/bill")
    assert await status_of(app, "/bill/usage?metric=tokens") == 200
    assert await status_of(app) == 404


@pytest.mark.sqlite_only
async def test_a_sync_principal_will_do(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=lambda request: Principal("t1"))
    assert await status_of(app) == 200


@pytest.mark.sqlite_only
async def test_without_one_the_application_s_middleware_says_who_is_asking(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory)

    @app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        request.state.principal = await principal_of(request)
        return await call_next(request)

    assert await status_of(app) == 200
    async with client_of(app) as client:
        assert (await client.get(LIST)).status_code == 401


@pytest.mark.sqlite_only
async def test_a_principal_that_says_nobody_is_not_asked_twice(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=lambda request: None)

    @app.middleware("http")
    async def leave_somebody_behind(request: Request, call_next: Any) -> Any:
        request.state.principal = Principal("t1")
        return await call_next(request)

    assert await status_of(app) == 401


@pytest.mark.sqlite_only
async def test_a_principal_of_another_kind_is_an_error_of_the_application(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=lambda request: "t1")  # type: ignore[arg-type,return-value]  # that is the test
    assert await status_of(app) == 500


@pytest.mark.sqlite_only
async def test_the_principal_can_be_overridden(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory)
    app.dependency_overrides[get_principal] = lambda: Principal("t1")
    assert await status_of(app) == 200


async def test_without_arguments_the_settings_name_the_database(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = FastAPI()
    add_billing(app)
    app.dependency_overrides[get_principal] = lambda: Principal("t1")
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.post("/_billing/usage", json=USAGE)).status_code == 202
        engine = app.state.svc_infra.database._engine
        assert engine.pool.checkedin() == 1
    assert engine.pool.checkedin() == 0  # disposed with the application


async def test_the_embedded_database_is_a_file_that_migrate_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = FastAPI()
    add_billing(app, principal=principal_of)
    assert list(tmp_path.iterdir()) == []  # nothing is opened before the first request
    async with app.router.lifespan_context(app), client_of(app, ONE) as client:
        answer = await client.post("/_billing/usage", json=USAGE)
    assert answer.status_code == 503
    assert "worker.py migrate" in answer.json()["detail"]
    assert "Retry-After" in answer.headers
    with sqlite3.connect(tmp_path / "svc_infra.db") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


async def test_the_worker_s_settings_file_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "worker.toml").write_text('[database]\nurl = "sqlite:///:memory:"\n')
    app = FastAPI()
    add_billing(app, principal=principal_of)
    async with app.router.lifespan_context(app), client_of(app, ONE) as client:
        assert (await client.post("/_billing/usage", json=USAGE)).status_code == 202


async def test_sessions_of_the_caller_outlive_the_application(session_factory: Sessions) -> None:
    app = FastAPI()
    add_billing(app, session_factory=session_factory, principal=principal_of)
    async with app.router.lifespan_context(app):
        assert await status_of(app) == 200
    assert await status_of(app) == 200


def test_mounting_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    add_billing(app)
    with pytest.raises(InvalidSettings, match="once"):
        add_billing(app, prefix="/again")


def test_a_wrong_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVC__DATABASE__POOL_SIZE", "none")
    with pytest.raises(InvalidSettings, match="pool_size"):
        add_billing(FastAPI())
