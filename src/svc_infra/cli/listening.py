"""A receiver for development: it verifies what arrives, prints it and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from svc_infra.canonical import canonical_instant
from svc_infra.exceptions import InvalidPayload, VerificationFailed
from svc_infra.webhooks.receiving import MAX_RECEIVED_BYTES, read_message
from svc_infra.webhooks.signature import ID_HEADER, verify

_TIMEOUT_SECONDS = 10.0


def make_receiver(
    port: int, secrets: Sequence[str], show: Callable[[dict[str, Any]], None], *, answer: int = 204
) -> ThreadingHTTPServer:
    """Return a server on the loopback address; ``show`` is called with what arrived, verified or refused.

    What is verified is answered with ``answer``, all else with 401. ``port`` 0 takes a free one.
    """

    class Receiver(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not length.isdigit() or int(length) > MAX_RECEIVED_BYTES:
                self.close_connection = True
                self._end(413)
                return
            seen = _judge(dict(self.headers.items()), self.rfile.read(int(length)), secrets)
            show({"path": self.path, **seen})
            self._end(answer if seen["is_verified"] else 401)

        def _end(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: what arrived is shown already."""

    return ThreadingHTTPServer(("127.0.0.1", port), Receiver)


def _judge(headers: dict[str, str], body: bytes, secrets: Sequence[str]) -> dict[str, Any]:
    by_name = {name.lower(): value for name, value in headers.items()}
    message_id = by_name.get(ID_HEADER)
    try:
        verify(headers, body, secrets)
        message = read_message(message_id or "", body)
    except (VerificationFailed, InvalidPayload) as error:
        return {"is_verified": False, "id": message_id, "reason": str(error)}
    return {
        "is_verified": True,
        "id": message.id,
        "topic": message.topic,
        "occurred_at": canonical_instant(message.occurred_at),
        "data": message.data,
    }
