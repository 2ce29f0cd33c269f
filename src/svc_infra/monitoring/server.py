"""The port on which a worker answers its operator: ``/livez``, ``/readyz`` and ``/metrics``.

It is served by threads of its own, so that it also answers while a handler blocks the event loop, which is
what ``/livez`` is there to tell.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from svc_infra.exceptions import InvalidSettings
from svc_infra.monitoring.health import Health

log = structlog.get_logger(__name__)

_CLIENT_SECONDS = 10
_JSON = "application/json"


class MonitoringServer:
    """Serves while it is entered as a context manager. ``port`` 0 takes a free one.

    Raises:
        InvalidSettings: the port cannot be bound.
    """

    def __init__(
        self, health: Health, *, host: str, port: int, registry: CollectorRegistry = REGISTRY
    ) -> None:
        routes: Mapping[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/livez": lambda: _verdict(health.why_not_alive()),
            "/readyz": lambda: _verdict(health.why_not_ready()),
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)),
        }
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(routes))
        except (OSError, OverflowError) as error:
            raise InvalidSettings(f"monitoring.port: {host}:{port} cannot be bound: {error}") from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 5.0}, name="svc_infra.monitoring"
        )

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        return int(self._server.server_address[1])

    def __enter__(self) -> MonitoringServer:
        self._thread.start()
        log.info("monitoring.listening", host=self._server.server_address[0], port=self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _verdict(reason: str | None) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
    body = {"status": "ok"} if reason is None else {"status": "unavailable", "reason": reason}
    return status, _JSON, json.dumps(body).encode()


def _handler(
    routes: Mapping[str, Callable[[], tuple[HTTPStatus, str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS
        server_version, sys_version = "svc_infra", ""

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                self._answer(HTTPStatus.NOT_FOUND, _JSON, b'{"status":"not found"}')
            else:
                self._answer(*route())

        do_HEAD = do_GET

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            if status is HTTPStatus.SERVICE_UNAVAILABLE:
                self.send_header("Retry-After", "5")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: probes come every few seconds and would drown the log."""

    return Handler
