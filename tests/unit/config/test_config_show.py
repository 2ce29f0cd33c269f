"""``config show``: what is in force, and nothing secret."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from svc_infra.cli import cli


def test_it_shows_every_setting_with_its_source_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:canary-1@db/x")
    monkeypatch.setenv("SVC__WEBHOOKS__SECRET_KEYS", "k1:canary-2")
    result = CliRunner().invoke(cli, ["config", "show", "--set", "worker.concurrency=3", "--json"])
    assert result.exit_code == 0, result.output
    assert "canary" not in result.output
    rows = {row["setting"]: (row["value"], row["source"]) for row in json.loads(result.output)}
    assert rows["database.url"] == ("postgresql://user:***@db/x", "environment DATABASE_URL")
    assert rows["webhooks.secret_keys"] == ("**********", "environment SVC__WEBHOOKS__SECRET_KEYS")
    assert rows["worker.concurrency"] == (3, "flag")
