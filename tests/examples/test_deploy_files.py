"""The deployment files: they parse, name commands and settings that exist, and keep to what is promised.

No container engine, systemd or cluster runs here: that they work there is not shown by these tests.
"""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

import svc_infra.billing.metrics
import svc_infra.jobs.metrics
import svc_infra.simulation.audit_job
import svc_infra.webhooks.metrics
from svc_infra.cli import _COMMANDS
from svc_infra.config import Settings
from svc_infra.monitoring.gauges import GAUGE_HELP

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
DEFINED_BY_IMPORT = (
    svc_infra.billing.metrics,
    svc_infra.jobs.metrics,
    svc_infra.simulation.audit_job,
    svc_infra.webhooks.metrics,
)


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def containers() -> list[dict[str, Any]]:
    templates = [
        document["spec"]["template"] for document in documents("kubernetes.yaml") if is_pod(document)
    ]
    return [container for template in templates for container in template["spec"]["containers"]]


def is_pod(document: dict[str, Any]) -> bool:
    return "template" in document["spec"]


def require_known_setting(variable: str) -> None:
    section, key = variable.removeprefix("SVC__").lower().split("__")
    assert key in type(getattr(Settings(), section)).model_fields


def test_the_image_runs_without_rights_and_knows_its_health() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last_stage = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    user = next(line for line in last_stage if line.startswith("USER "))
    assert int(user.split()[1]) > 0
    assert any(line.startswith("HEALTHCHECK ") for line in last_stage)
    text = "\n".join(lines)
    assert "--require-hashes" in text
    for name in re.findall(r"SVC__\w+", text):
        require_known_setting(name)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()


def test_compose_names_commands_and_secrets_that_exist() -> None:
    [compose] = documents("compose.yaml")
    for name, service in compose["services"].items():
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        if "command" in service:
            assert service["command"][0] in _COMMANDS
            assert service["read_only"] is True, name
            assert parse_seconds(service["stop_grace_period"]) > Settings().worker.grace_seconds
        for other in service.get("depends_on", {}):
            assert other in compose["services"]


def test_pods_are_unprivileged_and_probed_and_given_time_to_stop() -> None:
    pods = [
        document["spec"]["template"]["spec"] for document in documents("kubernetes.yaml") if is_pod(document)
    ]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
    for container in containers():
        assert container["args"][0] in _COMMANDS
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        if container["args"][0] == "migrate":
            continue
        ports = {port["name"] for port in container["ports"]}
        for probe, path in (
            ("livenessProbe", "/livez"),
            ("readinessProbe", "/readyz"),
            ("startupProbe", "/livez"),
        ):
            asked = container[probe]["httpGet"]
            assert (asked["path"], asked["port"] in ports) == (path, True)
        # One slow answer must not restart every worker at once.
        assert container["livenessProbe"].get("failureThreshold", 3) >= 3
    for document in documents("kubernetes.yaml"):
        if document["kind"] == "Deployment":
            seconds = document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert seconds > Settings().worker.grace_seconds


def test_the_unit_gives_the_worker_time_to_stop_and_names_commands_that_exist() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "svc-worker.service")
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) > Settings().worker.grace_seconds
    for key in ("ExecStart", "ExecStartPre"):
        assert service[key].split()[1] in _COMMANDS
    text = (DEPLOY / "svc-worker.service").read_text(encoding="utf-8")
    for name in re.findall(r"SVC__\w+", text):
        require_known_setting(name)


def used_metrics() -> set[str]:
    [rules] = documents("prometheus-rules.yaml")
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for expression in expressions for name in re.findall(r"\bbilling_\w+", expression)}


def test_every_metric_of_the_alerts_and_the_dashboard_exists() -> None:
    defined = set(REGISTRY._names_to_collectors) | GAUGE_HELP.keys()
    assert used_metrics() - defined == set()


def test_every_alert_has_its_runbook() -> None:
    [rules] = documents("prometheus-rules.yaml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert f"\n## {rule['alert']}\n" in RUNBOOKS
            assert rule["annotations"]["runbook"].endswith(f"#{rule['alert'].lower()}")
            assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed"
)
def test_promtool_accepts_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", str(DEPLOY / "prometheus-rules.yaml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def parse_seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])
