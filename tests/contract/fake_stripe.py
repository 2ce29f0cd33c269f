"""A stateful stand-in for Stripe on loopback, as far as mirroring invoices goes.

Every request body is validated against the ``TypedDict`` of its parameters in the official library, which is
generated from Stripe's own description: what we send is judged by their contract and not by our idea of it.
Faults are injected by request: an answer of 429 or 500, or a connection that is closed after the commit.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import stripe._request_options
import stripe.params
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import is_typeddict

API_KEY = "sk_test_canary"

_PARAMS = {
    "POST customers": "CustomerCreateParams",
    "GET customers/search": "CustomerSearchParams",
    "POST invoices": "InvoiceCreateParams",
    "GET invoices": "InvoiceListParams",
    "GET invoices/ID": "InvoiceRetrieveParams",
    "POST invoices/ID/finalize": "InvoiceFinalizeInvoiceParams",
    "POST invoiceitems": "InvoiceItemCreateParams",
    "GET invoiceitems": "InvoiceItemListParams",
}


class _Untyped:
    def __class_getitem__(cls, value: Any) -> Any:
        return dict[str, value]


def adapter(name: str) -> TypeAdapter[Any]:
    """A validator of the library's own parameters that refuses what they do not name."""
    kind = getattr(stripe.params, name)
    module = vars(sys.modules[kind.__module__])
    for each in module.values():
        if is_typeddict(each):
            each.__pydantic_config__ = ConfigDict(extra="forbid")
    # What the library leaves untyped: any nested object, and an option that is no part of a body.
    untyped = {"UntypedStripeObject": _Untyped, "StripeContext": Any}
    made: TypeAdapter[Any] = TypeAdapter(kind, config=None, _parent_depth=0)
    made.rebuild(force=True, _types_namespace=vars(typing) | vars(stripe._request_options) | module | untyped)
    return made


@dataclass
class Fault:
    """What happens to the next request whose name fits: ``status``, or None for a connection that closes."""

    request: str
    status: int | None
    after_commit: bool = True
    code: str | None = None
    is_the_last: bool = False


@dataclass
class FakeStripe:
    """What is stored, and what was asked."""

    customers: dict[str, dict[str, Any]] = field(default_factory=dict)
    invoices: dict[str, dict[str, Any]] = field(default_factory=dict)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    keys: dict[str, tuple[str, str, int, dict[str, Any]]] = field(default_factory=dict)
    tampers_with_totals: bool = False
    is_down: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._adapters = {request: adapter(name) for request, name in _PARAMS.items()}

    def __enter__(self) -> FakeStripe:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._do(urlsplit(self.path).query)

            def do_POST(self) -> None:
                self._do(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

            def _do(self, body: str) -> None:
                key = self.headers.get("Idempotency-Key")
                authorized = self.headers.get("Authorization") == f"Bearer {API_KEY}"
                path = urlsplit(self.path).path.removeprefix("/v1/")
                status, answer = fake.answer(self.command, path, body, key, authorized)
                if status is None:
                    self.close_connection = True
                    return
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(
        self, method: str, path: str, body: str, key: str | None, authorized: bool
    ) -> tuple[int | None, dict[str, Any]]:
        with self._lock:
            request = f"{method} {re.sub('(in|cus|ii)_[0-9]+', 'ID', path)}"
            self.requests.append(request)
            if not authorized:
                return 401, _error("invalid_request_error", f"Invalid API Key provided: {API_KEY}")
            if self.is_down:
                return 503, _error("api_error", "down")
            fault = next((each for each in self.faults if each.request == request), None)
            if fault is not None:
                self.faults.remove(fault)
                self.is_down = fault.is_the_last
                if not fault.after_commit:
                    kept = fault.code == "lock_timeout" or (fault.status or 0) >= 500
                    answer = _error("api_error", "injected", fault.code)
                    if key and kept and fault.status:
                        self.keys[key] = (request, body, fault.status, answer)
                    return fault.status, answer
            if method == "POST" and key in self.keys:
                known_request, known_body, status, answer = self.keys[key]
                if (known_request, known_body) != (request, body):
                    return 400, _error("idempotency_error", "Keys are for the same parameters")
                return status, answer
            params = self._adapters[request].validate_python(_nested(body))
            assert not params.keys() & stripe.RequestOptions.__annotations__.keys()
            status, answer = self._do(request, path, params)
            if fault is not None and fault.status is not None:
                status, answer = fault.status, _error("api_error", "injected", fault.code)
            if method == "POST" and key:
                self.keys[key] = (request, body, status, answer)
            return (None if fault is not None and fault.status is None else status), answer

    def _do(self, request: str, path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        act: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]] = {
            "POST customers": self._create_customer,
            "GET customers/search": self._search_customers,
            "POST invoices": self._create_invoice,
            "GET invoices": self._list_invoices,
            "GET invoices/ID": self._retrieve_invoice,
            "POST invoices/ID/finalize": self._finalize_invoice,
            "POST invoiceitems": self._create_item,
            "GET invoiceitems": self._list_items,
        }[request]
        return act(path, params)

    def _create_customer(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, self._store(self.customers, "cus", "customer", params)

    def _search_customers(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        found = re.fullmatch(r"metadata\['(\w+)'\]:'(.*)'", params["query"])
        assert found
        name, value = found[1], re.sub(r"\\(.)", r"\1", found[2])
        fitting = [each for each in self.customers.values() if each["metadata"].get(name) == value]
        return 200, {
            "object": "search_result",
            "data": fitting,
            "has_more": False,
            "url": "/v1/customers/search",
        }

    def _create_invoice(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert params["customer"] in self.customers
        return 200, self._store(self.invoices, "in", "invoice", {**params, "status": "draft", "total": 0})

    def _list_invoices(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, _page(self.invoices, params, "customer", "/v1/invoices")

    def _retrieve_invoice(self, path: str, _params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, self.invoices[path.split("/")[1]]

    def _finalize_invoice(self, path: str, _params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        invoice = self.invoices[path.split("/")[1]]
        if invoice["status"] != "draft":
            return 400, _error("invalid_request_error", "This invoice is already finalized.")
        invoice["status"] = "open"
        return 200, invoice

    def _create_item(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        invoice = self.invoices[params["invoice"]]
        if invoice["status"] != "draft" or params["currency"] != invoice["currency"]:
            return 400, _error("invalid_request_error", "This invoice takes no such item.")
        invoice["total"] += params["amount"] + self.tampers_with_totals
        return 200, self._store(self.items, "ii", "invoiceitem", params)

    def _list_items(self, _path: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, _page(self.items, params, "invoice", "/v1/invoiceitems")

    def _store(
        self, into: dict[str, dict[str, Any]], prefix: str, kind: str, values: dict[str, Any]
    ) -> dict[str, Any]:
        made = {"id": f"{prefix}_{len(into) + 1}", "object": kind, "metadata": {}, **values}
        into[made["id"]] = made
        return made


def _page(stored: dict[str, dict[str, Any]], params: dict[str, Any], by: str, url: str) -> dict[str, Any]:
    found = [each for each in reversed(stored.values()) if each[by] == params[by]]
    if after := params.get("starting_after"):
        found = found[[each["id"] for each in found].index(after) + 1 :]
    limit = params.get("limit", 10)
    return {"object": "list", "data": found[:limit], "has_more": len(found) > limit, "url": url}


def _error(kind: str, message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, **({"code": code} if code else {})}}


def _nested(body: str) -> dict[str, Any]:
    """Stripe's form encoding, ``period[start]=1``, as nested dicts of texts."""
    nested: dict[str, Any] = {}
    for name, value in parse_qsl(body, keep_blank_values=True):
        parts = re.findall(r"[^\[\]]+", name)
        into = nested
        for part in parts[:-1]:
            into = into.setdefault(part, {})
        into[parts[-1]] = value
    return nested
