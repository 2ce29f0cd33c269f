"""The reference of the HTTP API is what the application and its errors are.

``python -m tests.examples.test_http_reference`` writes it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from svc_infra.api.fastapi.middleware.errors.kinds import ALL_KINDS
from svc_infra.api.fastapi.service import make_app
from svc_infra.db.session import make_engine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http_reference.md"
HEAD = """# Reference of the HTTP API

Written from the application by `python -m tests.examples.test_http_reference`, and held to it by a test.
How to use it: [billing over HTTP](howto/http.md), [webhooks and jobs](howto/http_webhooks_and_jobs.md).
"""


def reference() -> str:
    """Return the page as the application has it."""
    document = make_app(make_engine("sqlite:///:memory:")).openapi()
    routes: dict[str, list[str]] = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, spec in methods.items():
            scopes = [scope for each in spec.get("security", ()) for scope in each.get("apiKey", ())]
            does = spec["description"].split("\n\n")[0].replace("\n", " ").replace("``", "`")
            needs = f"`{scopes[0]}`" if scopes else "open to everybody"
            routes[spec["tags"][-1]].append(f"| `{method.upper()} {path}` | {needs} | {does} |")
    parts = [HEAD]
    for tag in sorted(routes):
        rows = "\n".join(sorted(routes[tag], key=lambda row: row.split("`")[1].split()[::-1]))
        title = tag[0].upper() + tag[1:]
        parts.append(f"## {title}\n\n| Route | Scope | What it does |\n|---|---|---|\n{rows}\n")
    sent = "\n".join(
        f"| `{name}` | {spec['post']['summary']} |" for name, spec in document["webhooks"].items()
    )
    parts.append(f"## Webhooks that are sent\n\n| Topic | When |\n|---|---|\n{sent}\n")
    kinds = sorted(ALL_KINDS, key=lambda kind: (kind.status, kind.slug))
    rows = "\n".join(f"| {kind.status} | `{kind.type}` | {kind.title} |" for kind in kinds)
    parts.append(
        "## Kinds of problems\n\nAn answer of another status, like 404 for a path that is none, has the type "
        f"`about:blank`.\n\n| Status | `type` | Meaning |\n|---|---|---|\n{rows}\n"
    )
    return "\n".join(parts)


def test_the_reference_is_what_the_application_is() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == reference(), "write it anew with python -m tests.examples.test_http_reference"


def test_every_kind_of_problem_has_a_type_of_its_own() -> None:
    assert len({kind.type for kind in ALL_KINDS}) == len(ALL_KINDS)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
