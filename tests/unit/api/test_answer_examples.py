"""Every answer with a body has an example in the OpenAPI document, which is one of its own schema."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from fastapi import FastAPI

from svc_infra.api.fastapi.service import make_app
from svc_infra.db.session import make_engine


def answers(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The contents of all answers that are no errors."""
    return {
        f"{operation['operationId']} {status} {media_type}": content
        for path in document["paths"].values()
        for operation in path.values()
        for status, answer in operation["responses"].items()
        for media_type, content in answer.get("content", {}).items()
        if status.startswith("2")
    }


def document_of(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def test_each_answer_has_an_example_that_is_valid() -> None:
    document = document_of(make_app(make_engine("sqlite:///:memory:")))
    found = answers(document)
    assert len(found) >= 60
    wrong = []
    for name, content in found.items():
        schema = {**content["schema"], "components": document["components"]}
        if "example" not in content or not jsonschema_rs.is_valid(schema, content["example"]):
            wrong.append(name)
    assert wrong == []


def test_an_example_that_is_not_valid_would_be_found() -> None:
    document = document_of(make_app(make_engine("sqlite:///:memory:")))
    content = answers(document)["billing_get_entitlement 200 application/json"]
    schema = {**content["schema"], "components": document["components"]}
    assert jsonschema_rs.is_valid(schema, content["example"])
    assert not jsonschema_rs.is_valid(schema, {"items": [{"key": 1}]})
