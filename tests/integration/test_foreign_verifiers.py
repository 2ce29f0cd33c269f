"""Our signatures before the libraries that subscribers use, Python and JavaScript, over real HTTP.

JavaScript needs node, and the two packages that ``make node-deps`` installs into the environment; a test says
so when they are missing.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.delivery import Answer, EndpointTarget, OutgoingRequest, prepare
from svc_infra.webhooks.ed25519 import new_private_key, public_key
from svc_infra.webhooks.message import Message, encode_body
from svc_infra.webhooks.signature import new_secret
from svc_infra.webhooks.transport import HttpSender

MODULES = Path(sys.prefix) / "webhook-verifiers" / "node_modules"
FOREIGN = Path(__file__).parents[1] / "foreign"
SECRET, PRIVATE_KEY = new_secret(), new_private_key()
OCCURRED_AT = datetime(1997, 1, 1, tzinfo=UTC)
BODY = encode_body("billing.invoice.created", OCCURRED_AT, {"invoice_id": "inv_1", "name": "Zoë ☃ 𝄞"})
MESSAGE = Message("msg_0123456789abcdef", "billing.invoice.created", "acme", BODY, OCCURRED_AT)

BOTH_VERIFY, BOTH_REFUSE = b"yy", b"nn"


def _python() -> list[str]:
    return [sys.executable, str(FOREIGN / "receiver.py"), SECRET, public_key(PRIVATE_KEY)]


def _node() -> list[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("FOREIGN VERIFIERS NOT RUN: node is missing; install Node.js 18 or newer")
    if not MODULES.is_dir():
        pytest.skip("FOREIGN VERIFIERS NOT RUN: the npm packages are missing; run 'make node-deps'")
    return [node, str(FOREIGN / "receiver.cjs"), str(MODULES), SECRET]


@pytest.fixture(scope="module", params=[_python, _node], ids=["python", "node"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with _serving(request.param()) as url:
        yield url


@contextlib.contextmanager
def _serving(command: list[str], environment: dict[str, str] | None = None) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


@pytest.fixture
async def sender() -> AsyncIterator[HttpSender]:
    sender = loopback_sender()
    yield sender
    await sender.aclose()


def request_to(url: str, *secrets: str, age_seconds: int = 0) -> OutgoingRequest:
    now = datetime.now(UTC) - timedelta(seconds=age_seconds)
    return prepare(MESSAGE, EndpointTarget(url, secrets), now=now, user_agent="test")


async def verdict_of(sender: HttpSender, request: OutgoingRequest) -> bytes:
    answer = await sender.send(request)
    assert isinstance(answer, Answer), answer
    return answer.excerpt


@pytest.mark.parametrize(
    "secrets",
    [
        [SECRET],
        [new_secret(), SECRET],
        [SECRET, new_secret()],
        [SECRET, new_private_key()],
        [new_private_key(), new_secret(), SECRET],
    ],
    ids=["v1", "rotation, ours is the old one", "rotation, ours is the new one", "v1 v1a", "v1a v1 v1"],
)
async def test_what_we_sign_is_verified(url: str, sender: HttpSender, secrets: list[str]) -> None:
    assert await verdict_of(sender, request_to(url, *secrets)) == BOTH_VERIFY


async def test_each_attempt_is_stamped_and_signed_anew_and_verifies(url: str, sender: HttpSender) -> None:
    for age_seconds in (290, 10, 0):
        assert await verdict_of(sender, request_to(url, SECRET, age_seconds=age_seconds)) == BOTH_VERIFY


async def test_what_was_changed_on_the_way_is_refused(url: str, sender: HttpSender) -> None:
    good = request_to(url, SECRET)
    later = str(int(good.headers["webhook-timestamp"]) + 1)
    for changed in (
        replace(good, body=good.body + b" "),
        replace(good, headers=good.headers | {"webhook-id": "msg_other"}),
        replace(good, headers=good.headers | {"webhook-timestamp": later}),
        replace(good, headers=good.headers | {"webhook-signature": "v1,AAAA"}),
    ):
        assert await verdict_of(sender, changed) == BOTH_REFUSE


@pytest.mark.parametrize("secrets", [[new_secret()], [new_private_key()]], ids=["other secret", "v1a alone"])
async def test_what_another_key_signed_is_refused(url: str, sender: HttpSender, secrets: list[str]) -> None:
    assert await verdict_of(sender, request_to(url, *secrets)) == BOTH_REFUSE


@pytest.mark.parametrize("age_seconds", [310, -310])
async def test_an_attempt_that_is_too_old_or_from_the_future_is_refused(
    url: str, sender: HttpSender, age_seconds: int
) -> None:
    assert await verdict_of(sender, request_to(url, SECRET, age_seconds=age_seconds)) == BOTH_REFUSE


async def test_the_asymmetric_signature_is_verified_with_the_public_key_alone(sender: HttpSender) -> None:
    with _serving(_python()) as url:
        good = request_to(f"{url}v1a", SECRET, new_private_key(), PRIVATE_KEY)
        assert await verdict_of(sender, good) == b"y"
        assert await verdict_of(sender, replace(good, body=good.body + b" ")) == b"n"
        assert await verdict_of(sender, request_to(f"{url}v1a", SECRET, new_private_key())) == b"n"


async def test_the_receiver_of_the_tutorial_verifies_in_node_alone(
    sender: HttpSender, tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("THE TUTORIAL'S NODE RECEIVER NOT RUN: node is missing; install Node.js 18 or newer")
    page = (FOREIGN.parents[1] / "docs" / "tutorials" / "receive_webhooks.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```js receiver.cjs\n(.+?)^```", page, re.MULTILINE | re.DOTALL)
    on_any_port = script.replace("listen(9001", "listen(0").replace('"waiting"', "server.address().port")
    file = tmp_path / "receiver.cjs"
    file.write_text(on_any_port, encoding="utf-8")
    with _serving([node, str(file)], {"WEBHOOK_SECRET": SECRET}) as url:
        good = request_to(url, new_secret(), SECRET)
        unsigned = {key: text for key, text in good.headers.items() if not key.startswith("webhook-")}
        for request, status in (
            (good, 204),
            (replace(good, body=b"{}"), 401),
            (replace(good, headers=good.headers | {"webhook-id": "msg_other"}), 401),
            (replace(good, headers=unsigned), 401),
            (request_to(url, new_secret()), 401),
            (request_to(url, SECRET, age_seconds=310), 401),
        ):
            answer = await sender.send(request)
            assert isinstance(answer, Answer)
            assert answer.status == status
