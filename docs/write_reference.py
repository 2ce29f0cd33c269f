"""Write docs/reference from the code: ``make reference``. A test holds the pages to it.

Nothing of these pages is written by hand: what they say of a command, a setting, a route, a topic, a metric
or an error stands where that is defined.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import click
from prometheus_client import REGISTRY
from pydantic import SecretStr
from pydantic.fields import FieldInfo

import svc_infra
from svc_infra.api.fastapi.middleware.errors.kinds import ALL_KINDS, OF_ERRORS
from svc_infra.api.fastapi.service import make_app
from svc_infra.application import Application
from svc_infra.cli import cli
from svc_infra.cli.webhooks import topics_of_worker
from svc_infra.config import ENVIRONMENT_PREFIX, Settings
from svc_infra.db.session import make_engine
from svc_infra.logs import configure_logging
from svc_infra.monitoring.gauges import GAUGE_HELP

DOCS = Path(__file__).resolve().parent
REFERENCE = DOCS / "reference"
COMMAND = "make reference"
ABOUT = {
    "Commands": """
`worker.py` in a checkout and `svc-worker` from the wheel are one command. `--help` says what stands here.
""",
    "HTTP API": """
How to use it: [billing](../howto/http.md), [webhooks and jobs](../howto/http_webhooks_and_jobs.md).
`/openapi.json` of `worker.py api` has the schemas, with an example for each body. Answers that are no success
are [problems](errors.md).
""",
    "Errors": """
An answer of the HTTP API that is no success is a problem document (RFC 9457). Compare its `type`, which
never changes; `title` is the meaning below, `detail` says more to people. An answer of another status, like
404 for a path that is none, has the type `about:blank`.

The last column names the exception of `svc_infra.exceptions` that Python code gets in the same case.
""",
    "Events": """
The topics that are published as webhooks, beside those of your own application
(`worker.py webhooks topics --app shop:app`). How to receive them: [webhooks](../howto/webhooks.md). A version
rises when a payload changes in a way that a receiver could notice.
""",
    "Metrics": """
What `/metrics` of a process with `monitoring.port` answers. Gauges of what waits are read from the database,
so every process says the same: take the `max`. No metric has a label of a tenant or a URL. There are
[alerts](../deploy/prometheus-rules.yaml) with [runbooks](../runbooks.md), and a
[dashboard](../deploy/grafana-dashboard.json).
""",
}
SHARED_OPTIONS = ("--config", "--database-url", "--set", "--json", "--actor")


def pages() -> dict[str, str]:
    """Return every page of docs/reference by its file name."""
    document = make_app(make_engine("sqlite:///:memory:")).openapi()
    written = {
        "cli.md": cli_page(),
        "settings.md": settings_page(),
        "http.md": http_page(document),
        "events.md": events_page(),
        "metrics.md": metrics_page(),
        "errors.md": errors_page(),
    }
    return {name: text.rstrip("\n") + "\n" for name, text in written.items()}


def head(title: str, about: str = "") -> str:
    source = f"*Written from the code by `{COMMAND}`, and held to it by a test.*"
    return f"# {title}\n\n{source}\n\n{about or ABOUT[title].strip()}\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


# --- the command line -----------------------------------------------------------------------------


def cli_page() -> str:
    parts = [
        head("Commands"),
        f"{exit_codes()}\n\n## Options of most commands\n\nA command that has them says so.\n",
        table(["Option", "Meaning"], shared_options()),
    ]
    for path, command, context in commands():
        parts.append(command_section(path, command, context))
    return "\n".join(parts)


def exit_codes() -> str:
    *_, codes = (cli.help or "").split("\n\n")
    return one_line(codes)


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command that can be run, under one of its names, with its context."""
    seen: set[int] = set()

    def walk(
        command: click.Command, context: click.Context, path: str
    ) -> Iterator[tuple[str, click.Command, click.Context]]:
        if id(command) in seen:
            return
        seen.add(id(command))
        if not isinstance(command, click.Group):
            yield path, command, context
            return
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            if not child.hidden:
                yield from walk(child, click.Context(child, info_name=name, parent=context), f"{path} {name}")

    yield from walk(cli, click.Context(cli, info_name="worker.py", **cli.context_settings), "worker.py")


def shared_options() -> Iterator[tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for _, command, context in commands():
        for option in options_of(command):
            name = option.opts[-1]
            if name in SHARED_OPTIONS and name not in found:
                found[name] = option_row(option, context)
    return iter([found[name] for name in SHARED_OPTIONS])


def options_of(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option) and not each.hidden]


def command_section(path: str, command: click.Command, context: click.Context) -> str:
    options = options_of(command)
    shared = [f"`{name}`" for name in SHARED_OPTIONS if any(name in each.opts for each in options)]
    usage = " ".join(
        [path, *(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")]
    )
    with_shared = f"With {', '.join(shared)}.\n" if shared else ""
    paragraphs = [one_line(each) for each in (command.help or "").split("\n\n")]
    text = (
        f"## {path.removeprefix('worker.py ')}\n\n`{usage}` {with_shared}\n" + "\n\n".join(paragraphs) + "\n"
    )
    own = [option_row(each, context) for each in options if not set(each.opts) & set(SHARED_OPTIONS)]
    return text + ("\n" + table(["Option", "Meaning"], own) if own else "")


def option_row(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    assert record is not None
    names, meaning = record
    assert option.help, f"{context.command_path}: {option.opts[0]} has no help"
    return f"`{names}`", one_line(meaning).replace("  [", " [")


# --- the settings ---------------------------------------------------------------------------------

TYPE_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    SecretStr: "secret text",
}
_SETTING = re.compile(r"((?:# .*\n)+)(\w+) = ")


def settings_page() -> str:
    text = (DOCS.parent / "config" / "worker.toml").read_text(encoding="utf-8")
    about, *sections = re.split(r"^\[(\w+)\]\n", text, flags=re.MULTILINE)
    order = comment(about).partition("is written from here. ")[2]
    file = "[worker.toml](../../config/worker.toml) has them all with their defaults."
    parts = [head("Settings", f"{order}\n\n{file}")]
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        fields = section_fields(name)
        meanings = {key: comment(said) for said, key in _SETTING.findall(body)}
        assert meanings.keys() == fields.keys(), f"[{name}]: every key needs a comment of its own"
        defaults = tomllib.loads(body)
        rows = [
            (f"`{key}`", type_of(field), f"`{json.dumps(defaults[key])}`", meanings[key])
            for key, field in fields.items()
        ]
        prefix = f"{ENVIRONMENT_PREFIX}{name.upper()}__"
        parts.append(
            f"## {name}\n\nIn the environment `{prefix}…`, like `{prefix}{next(iter(fields)).upper()}`.\n\n"
            + table(["Key", "Type", "Default", "Meaning"], rows)
        )
    return "\n".join(parts)


def comment(text: str) -> str:
    return one_line(re.sub(r"^# ?", "", text, flags=re.MULTILINE))


def section_fields(name: str) -> dict[str, FieldInfo]:
    section = Settings.model_fields[name].annotation
    assert section is not None
    fields: dict[str, FieldInfo] = section.model_fields  # type: ignore[attr-defined]
    return fields


def type_of(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        SecretStr: "secret text",
    }
    return ", ".join([names[kind], *bounds(field)])


def bounds(field: FieldInfo) -> Iterator[str]:
    for each in field.metadata:
        if isinstance(each, annotated_types.Ge):
            yield f"{each.ge} or more"
        elif isinstance(each, annotated_types.Gt):
            yield f"more than {each.gt}"
        elif isinstance(each, annotated_types.Le):
            yield f"{each.le} or less"
        else:
            raise AssertionError(f"say how {each!r} is written")


# --- HTTP -----------------------------------------------------------------------------------------


def http_page(document: dict[str, Any]) -> str:
    routes: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, spec in methods.items():
            scopes = [scope for each in spec.get("security", ()) for scope in each.get("apiKey", ())]
            does = one_line(spec["description"].split("\n\n")[0])
            needs = f"`{scopes[0]}`" if scopes else "open to everybody"
            routes[spec["tags"][-1]].append((f"`{method.upper()} {path}`", needs, does))
    parts = [head("HTTP API")]
    for tag in sorted(routes):
        rows = sorted(routes[tag], key=lambda row: row[0].strip("`").split()[::-1])
        parts.append(f"## {tag[0].upper() + tag[1:]}\n\n" + table(["Route", "Scope", "What it does"], rows))
    return "\n".join(parts)


def errors_page() -> str:
    errors = {kind: error for error, kind in OF_ERRORS.items()}
    rows = []
    for kind in sorted(ALL_KINDS, key=lambda kind: (kind.status, kind.slug)):
        error = errors.get(kind)
        name = f"`{error.__name__}`: {one_line((error.__doc__ or '').split(chr(10))[0])}" if error else ""
        rows.append((str(kind.status), f"`{kind.type}`", kind.title, name))
    return head("Errors") + "\n" + table(["Status", "`type`", "Meaning", "In Python"], rows)


# --- events and metrics ---------------------------------------------------------------------------


def events_page() -> str:
    parts = [head("Events")]
    topics = topics_of_worker(Application())
    for topic in topics:
        schema = topics.json_schema(topic.topic)
        [example] = schema.pop("examples")
        parts.append(
            f"## {topic.topic}\n\nVersion {topic.version}. {topic.description}\n\n"
            f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```\n\n"
            f"JSON Schema of the body:\n\n```json\n{json.dumps(schema, indent=2, ensure_ascii=False)}\n```\n"
        )
    return "\n".join(parts)


def metrics_page() -> str:
    for module in walk_packages(svc_infra.__path__, "svc_infra."):
        import_module(module.name)  # which registers its metrics
    rows = {name: ("gauge", labels, meaning) for name, (labels, meaning) in GAUGE_HELP.items()}
    for collector, names in REGISTRY._collector_to_names.items():
        if not any(name.startswith("billing_") for name in names) or not hasattr(collector, "_labelnames"):
            continue
        [family] = collector.describe()
        suffix = "_total" if family.type == "counter" else ""
        rows[f"{family.name}{suffix}"] = (family.type, collector._labelnames, family.documentation)
    cells = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), one_line(meaning))
        for name, (kind, labels, meaning) in sorted(rows.items())
    ]
    return head("Metrics") + "\n" + table(["Metric", "Type", "Labels", "Meaning"], cells)


def write() -> None:
    """Write all pages, and remove those that are no more."""
    REFERENCE.mkdir(exist_ok=True)
    written = pages()
    for kept in REFERENCE.iterdir():
        if kept.name not in written:
            kept.unlink()
    for name, text in written.items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    configure_logging("warning")
    write()
