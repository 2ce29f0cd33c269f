"""The Idempotency-Key header: answered again, not done again, and never to somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from svc_infra.api.fastapi.dependencies import Principal
from svc_infra.api.fastapi.middleware.idempotency import IdempotencyMiddleware
from tests.unit.api.asking import client_of

KEY = {"Idempotency-Key": "k"}


class Till:
    """An application that counts what it has done."""

    def __init__(self, **options: Any) -> None:
        self.done = 0
        self.status = 201
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.app = FastAPI()
        self.app.add_api_route("/sell", self.sell, methods=["POST", "PUT", "PATCH", "DELETE"])
        self.app.add_api_route("/gift", self.sell, methods=["POST"])
        self.app.add_middleware(IdempotencyMiddleware, **options)

    async def sell(self, request: Request) -> Response:
        self.done += 1
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.status == 0:
            raise RuntimeError("the till is broken")
        body = b'{"sale":%d, "of":"%s"}' % (self.done, await request.body())
        return Response(body, self.status, {"X-Sale": str(self.done)}, media_type="application/json")


async def test_a_repetition_gets_the_same_bytes_and_is_not_done_again() -> None:
    till = Till()
    async with client_of(till.app, KEY) as client:
        first = await client.post("/sell", content=b"tea")
        again = await client.post("/sell", content=b"tea")
    assert till.done == 1
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["X-Sale"] == "1"
    assert again.headers["Content-Type"] == "application/json"
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_an_empty_store_of_the_caller_is_used() -> None:
    store: dict[str, Any] = {}
    till = Till(store=store)
    async with client_of(till.app, KEY) as client:
        await client.post("/sell")
    assert len(store) == 1
    same = Till(store=store)
    async with client_of(same.app, KEY) as client:
        assert (await client.post("/sell")).headers["Idempotency-Replayed"] == "true"
    assert same.done == 0


@pytest.mark.parametrize(("path", "body"), [("/sell", b"coffee"), ("/sell?size=big", b"tea")])
async def test_a_key_with_another_request_is_refused(path: str, body: bytes) -> None:
    till = Till()
    async with client_of(till.app, KEY) as client:
        await client.post("/sell", content=b"tea")
        answer = await client.post(path, content=body)
    assert (answer.status_code, till.done) == (422, 1)
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_while_the_first_is_running_a_repetition_is_refused() -> None:
    till = Till()
    till.gate = asyncio.Event()
    async with client_of(till.app, KEY) as client:
        first = asyncio.create_task(client.post("/sell"))
        await till.entered.wait()
        meanwhile = await client.post("/sell")
        till.gate.set()
        assert (await first).status_code == 201
        afterwards = await client.post("/sell")
    assert (meanwhile.status_code, meanwhile.headers["Retry-After"]) == (409, "1")
    assert (afterwards.status_code, till.done) == (201, 1)


@pytest.mark.parametrize("status", [0, 500, 503, 401, 403, 408, 425, 429])
async def test_a_request_that_failed_may_be_tried_again_under_its_key(status: int) -> None:
    till = Till()
    till.status = status
    async with client_of(till.app, KEY) as client:
        await client.post("/sell")
        till.status = 201
        answer = await client.post("/sell")
    assert (answer.status_code, till.done) == (201, 2)


async def test_a_request_that_was_cancelled_may_be_tried_again_under_its_key() -> None:
    till = Till()
    till.gate = asyncio.Event()
    async with client_of(till.app, KEY) as client:
        first = asyncio.create_task(client.post("/sell"))
        await till.entered.wait()
        first.cancel()
        await asyncio.wait([first])
        till.gate.set()
        assert (await client.post("/sell")).status_code == 201


@pytest.mark.parametrize("status", [200, 204, 303, 400, 404, 409, 422])
async def test_an_answer_that_will_not_change_is_kept(status: int) -> None:
    till = Till()
    till.status = status
    async with client_of(till.app, KEY) as client:
        first = await client.post("/sell")
        again = await client.post("/sell")
    assert (again.status_code, again.content, till.done) == (status, first.content, 1)


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "X-Api-Key", "X-Tenant-Id", "X-Anything-That-Names-Somebody"]
)
async def test_nobody_gets_the_answer_of_somebody_else(name: str) -> None:
    till = Till()
    async with client_of(till.app, KEY) as client:
        one = await client.post("/sell", headers={name: "one"})
        two = await client.post("/sell", headers={name: "two"})
        again = await client.post("/sell", headers={name: "two", "User-Agent": "other", "Traceparent": "x"})
    assert till.done == 2
    assert one.content != two.content == again.content


async def test_the_application_s_principal_tells_callers_apart() -> None:
    till = Till()

    @till.app.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        request.state.principal = Principal(request.query_params["as"])
        request.scope["query_string"] = b""
        return await call_next(request)

    async with client_of(till.app, KEY) as client:
        await client.post("/sell?as=t1")
        await client.post("/sell?as=t2")
        assert till.done == 2
        await client.post("/sell?as=t1")
    assert till.done == 2


async def test_an_application_may_say_itself_who_the_caller_is() -> None:
    async def caller(request: Request) -> str | None:
        return request.headers.get("X-Client-Certificate")

    till = Till(caller=caller)
    async with client_of(till.app, KEY) as client:
        for certificate in ("a", "b", "a"):
            await client.post("/sell", headers={"X-Client-Certificate": certificate})
        assert till.done == 2
        await client.post("/sell")
        await client.post("/sell")
    assert till.done == 4


async def test_a_key_belongs_to_its_method_and_path() -> None:
    till = Till()
    async with client_of(till.app, KEY) as client:
        for method, path in [("POST", "/sell"), ("PUT", "/sell"), ("POST", "/gift"), ("DELETE", "/sell")]:
            assert (await client.request(method, path)).status_code == 201
    assert till.done == 4


async def test_without_a_key_or_where_nothing_changes_requests_pass() -> None:
    store: dict[str, Any] = {}
    till = Till(store=store)
    till.app.add_api_route("/sell", till.sell, methods=["GET"])
    async with client_of(till.app) as client:
        await client.post("/sell")
        await client.post("/sell")
        await client.get("/sell", headers=KEY)
        await client.get("/sell", headers=KEY)
    assert (till.done, store) == (4, {})


async def test_the_header_may_have_another_name() -> None:
    till = Till(header_name="X-Request-Key")
    async with client_of(till.app) as client:
        for key in ("a", "b", "a"):
            await client.post("/sell", headers={"X-Request-Key": key})
    assert till.done == 2


@pytest.mark.parametrize("keys", [[""], ["k" * 256], ["a", "b"]])
async def test_a_key_that_cannot_be_one_is_refused(keys: list[str]) -> None:
    till = Till()
    async with client_of(till.app) as client:
        answer = await client.post("/sell", headers=[("Idempotency-Key", key) for key in keys])
    assert (answer.status_code, till.done) == (400, 0)


async def test_only_the_newest_answers_are_kept() -> None:
    store: dict[str, Any] = {}
    till = Till(store=store, max_entries=2)
    async with client_of(till.app) as client:
        for key in ("a", "b", "c"):
            await client.post("/sell", headers={"Idempotency-Key": key})
        assert (till.done, len(store)) == (3, 2)
        for key in ("c", "b", "a"):
            await client.post("/sell", headers={"Idempotency-Key": key})
    assert (till.done, len(store)) == (4, 2)


async def test_one_that_is_still_running_is_not_forgotten_for_newer_ones() -> None:
    till = Till(max_entries=1)
    till.gate = asyncio.Event()
    async with client_of(till.app) as client:
        first = asyncio.create_task(client.post("/sell", headers=KEY))
        await till.entered.wait()
        till.gate, gate = None, till.gate
        await client.post("/sell", headers={"Idempotency-Key": "newer"})
        assert (await client.post("/sell", headers=KEY)).status_code == 409
        gate.set()
        await first
        assert (await client.post("/sell", headers=KEY)).status_code == 201
    assert till.done == 2


async def test_a_long_body_is_refused_before_it_is_read_to_the_end() -> None:
    till = Till(max_body_bytes=10)
    pieces = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal pieces
        for _ in range(100):
            pieces += 1
            yield b"12345"

    async with client_of(till.app, KEY) as client:
        answer = await client.post("/sell", content=body())
    assert (answer.status_code, till.done, pieces) == (413, 0, 3)


async def test_the_same_body_in_other_pieces_is_the_same_request() -> None:
    async def body(*pieces: bytes) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    till = Till()
    async with client_of(till.app, KEY) as client:
        first = await client.post("/sell", content=body(b"gre", b"en ", b"tea"))
        again = await client.post("/sell", content=body(b"green tea"))
    assert (first.json()["of"], again.content, till.done) == ("green tea", first.content, 1)


async def test_a_streamed_answer_is_kept_unless_it_is_long() -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, max_body_bytes=10)
    done: list[str] = []

    @app.post("/{pieces}")
    async def stream(pieces: int) -> Response:
        done.append("stream")
        return StreamingResponse(iter([b"1234"] * pieces))

    async with client_of(app, KEY) as client:
        for pieces, expected in [(2, 1), (3, 2)]:
            done.clear()
            first, again = await client.post(f"/{pieces}"), await client.post(f"/{pieces}")
            assert first.content == again.content == b"1234" * pieces
            assert len(done) == expected


async def test_a_caller_who_left_while_sending_starts_nothing() -> None:
    reached: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    sent: list[Message] = []
    messages = iter([{"type": "http.request", "body": b"ha", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": [(b"idempotency-key", b"k")],
    }
    await IdempotencyMiddleware(app)(scope, receive, send)
    assert (reached, sent) == ([], [])


async def test_an_error_of_the_application_goes_its_way() -> None:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware)

    @app.post("/")
    async def refuse() -> None:
        raise HTTPException(404, "no such thing")

    async with client_of(app, KEY) as client:
        first, again = await client.post("/"), await client.post("/")
    assert first.json() == again.json() == {"detail": "no such thing"}
