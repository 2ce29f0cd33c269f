"""Errors as problem documents: what a caller may know, and nothing more."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra import exceptions
from svc_infra.api.fastapi.middleware.errors.handlers import register_error_handlers
from svc_infra.exceptions import SvcInfraError
from tests.unit.api.asking import client_of

PROBLEM = "application/problem+json"


class Order(BaseModel):
    amount: int


class OurOwn(exceptions.NotFound):
    """An application's own kind of one of our errors."""


def app_that_raises(error: Exception) -> FastAPI:
    app = FastAPI()
    register_error_handlers(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    @app.post("/orders")
    async def order(order: Order) -> dict[str, Any]:
        return {}

    return app


async def answer_to(error: Exception) -> Any:
    async with client_of(app_that_raises(error)) as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (exceptions.IdempotencyConflict("why"), 409, "idempotency-conflict"),
        (exceptions.PeriodOverlap("why"), 409, "period-overlap"),
        (exceptions.AmbiguousPrice("why"), 409, "ambiguous-price"),
        (exceptions.InvalidUsage("why"), 422, "invalid-usage"),
        (exceptions.InvalidPayload("why"), 422, "invalid-payload"),
        (exceptions.InvalidEndpoint("why"), 422, "invalid-endpoint"),
        (exceptions.InvalidSubscription("why"), 422, "invalid-subscription"),
        (exceptions.AmountTooLarge("why"), 422, "amount-too-large"),
        (exceptions.NotFound("why"), 404, "not-found"),
        (OurOwn("why"), 404, "not-found"),
        (exceptions.QuotaExceeded("why"), 429, "quota-exceeded"),
        (exceptions.SchemaMissing("why"), 503, "schema-missing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_our_errors_say_what_they_are(error: SvcInfraError, status: int, slug: str) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, PROBLEM)
    body = answer.json()
    assert body.pop("title")
    assert body == {"type": f"urn:svc-infra:problem:{slug}", "status": status, "detail": "why"}


async def test_a_quota_says_when_to_come_back_if_it_knows() -> None:
    error = exceptions.QuotaExceeded("used up")
    assert "Retry-After" not in (await answer_to(error)).headers
    error.retry_after_seconds = 59.2
    assert (await answer_to(error)).headers["Retry-After"] == "60"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=canary"),
        exceptions.InvalidSettings("password=canary"),
        exceptions.LeaseLost("password=canary"),
        SvcInfraError("password=canary"),
        FileNotFoundError("password=canary"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_ours_that_is_no_business_of_the_caller_is_500_without_detail(
    error: Exception,
) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, PROBLEM)
    assert answer.json() == {
        "type": "urn:svc-infra:problem:internal",
        "title": "Something went wrong on our side",
        "status": 500,
    }


@pytest.mark.parametrize(
    "error",
    [
        PoolTimeout("canary"),
        ConnectionRefusedError("canary"),
        TimeoutError("canary"),
        OSError("canary"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_database_that_is_away_is_503_with_a_time_to_come_back(error: Exception) -> None:
    answer = await answer_to(error)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "canary" not in answer.text


async def test_an_error_in_sql_is_500_and_shows_no_sql(engine: AsyncEngine) -> None:
    app = app_that_raises(RuntimeError())

    @app.get("/sql")
    async def query() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT canary FROM nowhere"))

    async with client_of(app) as client:
        answer = await client.get("/sql")
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, PROBLEM)
    assert "nowhere" not in answer.text


async def test_http_errors_keep_their_status_text_and_headers() -> None:
    answer = await answer_to(HTTPException(418, "short and stout", {"X-Pot": "tea"}))
    assert (answer.status_code, answer.headers["X-Pot"]) == (418, "tea")
    assert answer.json() == {
        "type": "about:blank",
        "title": "I'm a Teapot",
        "status": 418,
        "detail": "short and stout",
    }


async def test_http_errors_with_data_keep_it() -> None:
    answer = await answer_to(HTTPException(400, {"field": ["wrong"]}))
    assert answer.json()["context"] == {"field": ["wrong"]}


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(status: int) -> None:
    answer = await answer_to(HTTPException(status))
    assert (answer.status_code, answer.content) == (status, b"")


async def test_an_unknown_path_or_method_is_a_problem_too() -> None:
    async with client_of(app_that_raises(RuntimeError())) as client:
        missing, method = await client.get("/nowhere"), await client.delete("/orders")
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, PROBLEM)
    assert (method.status_code, method.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "body",
    ['{"amount": NaN}', '{"amount": "canary"}', '{"amount": "\\ud800"}', '{"\\ud800": 1}', "{", "canary"],
)
async def test_a_wrong_request_is_told_the_places_and_not_its_own_values(body: str) -> None:
    async with client_of(app_that_raises(RuntimeError())) as client:
        answer = await client.post("/orders", content=body.encode())
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, PROBLEM)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    errors = json.loads(answer.content, parse_constant=refuse)["errors"]
    assert errors[0]["loc"][0] == "body"
    assert errors[0]["detail"]
    assert "canary" not in answer.text
    assert not math.isnan(answer.json()["status"])


async def test_a_very_wrong_request_has_an_answer_of_bounded_size() -> None:
    app = app_that_raises(RuntimeError())

    @app.post("/many")
    async def many(orders: list[Order]) -> None: ...

    async with client_of(app) as client:
        answer = await client.post("/many", json=[{"x" * 1000: 1}] * 1000)
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)
    assert len(answer.content) < 10_000
