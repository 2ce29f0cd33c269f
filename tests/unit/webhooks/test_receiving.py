from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from subprocess import run
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from svc_infra.exceptions import InvalidPayload, InvalidSecret
from svc_infra.webhooks.ed25519 import new_private_key, public_key
from svc_infra.webhooks.message import encode_body
from svc_infra.webhooks.receiving import MAX_RECEIVED_BYTES, ReceivedMessage, read_message, verified_webhook
from svc_infra.webhooks.signature import new_secret, sign

SECRET, OLD_SECRET, PRIVATE_KEY = new_secret(), new_secret(), new_private_key()
OCCURRED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
Verified = Annotated[
    ReceivedMessage, Depends(verified_webhook([SECRET, OLD_SECRET, public_key(PRIVATE_KEY)]))
]
BODY = encode_body("billing.invoice.created", OCCURRED_AT, {"invoice_id": "inv_1"})


@pytest.fixture
def received() -> list[ReceivedMessage]:
    return []


@pytest.fixture
async def client(received: list[ReceivedMessage]) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()

    @app.post("/hook", status_code=204)
    async def hook(message: Verified) -> None:
        received.append(message)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://subscriber.example") as client:
        yield client


def signed(body: bytes = BODY, secret: str = SECRET, age_seconds: int = 0, **changed: str) -> dict[str, Any]:
    timestamp = int((datetime.now(UTC) - timedelta(seconds=age_seconds)).timestamp())
    names = {
        "webhook_id": "msg_1",
        "webhook_timestamp": str(timestamp),
        "webhook_signature": sign("msg_1", timestamp, body, [secret]),
    } | changed
    headers = {name.replace("_", "-"): value for name, value in names.items()}
    return {"content": body, "headers": headers}


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET, PRIVATE_KEY], ids=["new", "old", "ed25519"])
async def test_a_signed_webhook_reaches_the_application_parsed(
    client: httpx.AsyncClient, received: list[ReceivedMessage], secret: str
) -> None:
    assert (await client.post("/hook", **signed(secret=secret))).status_code == 204
    (message,) = received
    assert message == ReceivedMessage(
        "msg_1", "billing.invoice.created", OCCURRED_AT, {"invoice_id": "inv_1"}, BODY
    )


@pytest.mark.parametrize(
    "make_request",
    [
        lambda: signed(secret=new_secret()),
        lambda: signed(age_seconds=400),
        lambda: signed(age_seconds=-400),
        lambda: signed(webhook_id="msg_2"),
        lambda: signed(webhook_signature="v1,AAAA"),
        lambda: signed() | {"content": BODY + b" "},
        lambda: {"content": BODY},
        lambda: {},
    ],
    ids=["secret", "old", "future", "id", "signature", "body", "no headers", "nothing"],
)
async def test_an_unverified_webhook_is_answered_401_and_goes_no_further(
    client: httpx.AsyncClient, received: list[ReceivedMessage], make_request: Callable[[], dict[str, Any]]
) -> None:
    # Made now, not when the tests are collected: by now such a signature may not be of the future any more.
    response = await client.post("/hook", **make_request())
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"]
    assert response.json()["detail"]
    assert SECRET not in response.text
    assert received == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b"{}",
        b'{"type":1,"timestamp":"2026-01-01T00:00:00Z","data":1}',
        b'{"type":"a","timestamp":"2026-01-01T00:00:00","data":1}',
        b'{"type":"a","timestamp":"yesterday","data":1}',
        b'{"type":"a","timestamp":5,"data":1}',
        b"[" * 100_000,
    ],
    ids=range(11),
)
async def test_a_signed_body_that_is_no_message_is_answered_400(
    client: httpx.AsyncClient, received: list[ReceivedMessage], body: bytes
) -> None:
    response = await client.post("/hook", **signed(body))
    assert (response.status_code, received) == (400, [])
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_body_that_is_too_long_is_not_read_to_its_end(
    client: httpx.AsyncClient, received: list[ReceivedMessage]
) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield b"x" * 65_536

    response = await client.post("/hook", content=endless())
    assert (response.status_code, received) == (413, [])
    assert pieces <= MAX_RECEIVED_BYTES // 65_536 + 2


def test_a_structured_cloud_event_is_a_message_too() -> None:
    body = (
        b'{"specversion":"1.0","id":"1","source":"/","type":"a.b","time":"2026-03-01T12:00:00Z","data":[1]}'
    )
    assert read_message("msg_1", body) == ReceivedMessage("msg_1", "a.b", OCCURRED_AT, [1], body)
    with pytest.raises(InvalidPayload):
        read_message("msg_1", body.replace(b'"time"', b'"when"'))


@pytest.mark.parametrize("secrets", [[], "whsec_one"])
def test_a_dependency_without_a_list_of_secrets_is_refused(secrets: Any) -> None:
    with pytest.raises(InvalidSecret):
        verified_webhook(secrets)


def test_the_module_imports_without_fastapi() -> None:
    code = "import sys; sys.modules['fastapi'] = None; import svc_infra.webhooks.receiving"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
