"""Settings: where values come from, and what a wrong one says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from svc_infra.config import Settings, load_settings
from svc_infra.exceptions import InvalidSettings

WORKER_TOML = Path(__file__).resolve().parents[3] / "config" / "worker.toml"


def test_the_shipped_file_lists_every_setting_with_its_default() -> None:
    listed = tomllib.loads(WORKER_TOML.read_text())
    defaults = Settings().model_dump(mode="json")
    assert listed == defaults


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[worker]\nconcurrency = 7\ngrace_seconds = 11\n")
    monkeypatch.setenv("SVC__WORKER__CONCURRENCY", "9")
    settings = load_settings(file)
    assert (settings.worker.concurrency, settings.worker.grace_seconds) == (9, 11)


def test_database_url_of_the_caller_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///environment.db")
    assert load_settings().database.url == "sqlite:///environment.db"
    assert load_settings(database_url="sqlite:///flag.db").database.url == "sqlite:///flag.db"


def test_an_unknown_key_in_the_file_names_the_nearest_right_one(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[worker]\nconcurency = 7\n")
    with pytest.raises(InvalidSettings, match=r"worker\.concurency is unknown.*'concurrency'"):
        load_settings(file)


def test_an_unknown_section_names_the_nearest_right_one(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[webhook]\nin_flight = 7\n")
    with pytest.raises(InvalidSettings, match="'webhooks'"):
        load_settings(file)


def test_an_unknown_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVC__WORKER__CONCURENCY", "3")
    with pytest.raises(InvalidSettings, match=r"SVC__WORKER__CONCURENCY is unknown.*'concurrency'"):
        load_settings()


def test_a_wrong_value_says_which_and_why(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[worker]\nconcurrency = 0\n")
    with pytest.raises(InvalidSettings, match=r"worker\.concurrency"):
        load_settings(file)


def test_a_delivery_lease_shorter_than_two_requests_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[webhooks]\ntimeout_seconds = 20\nlease_seconds = 30\n")
    with pytest.raises(InvalidSettings, match="twice"):
        load_settings(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")
