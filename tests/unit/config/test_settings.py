"""Settings: where values come from, and what a wrong one says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from svc_infra.config import Settings, load_settings, load_with_sources
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


def test_a_mounted_file_may_hold_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("postgresql://u:hunter2@db/x\n")
    (tmp_path / "keys").write_text("k1:AAAA\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    file = tmp_path / "worker.toml"
    file.write_text(f'[webhooks]\nsecret_keys_file = "{tmp_path / "keys"}"\n')
    settings = load_settings(file)
    assert settings.database.url == "postgresql://u:hunter2@db/x"
    assert settings.webhooks.secret_keys.get_secret_value() == "k1:AAAA"
    monkeypatch.setenv("SVC__WORKER__CONCURRENCY_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidSettings, match=r"CONCURRENCY_FILE: .*nowhere cannot be read"):
        load_settings(file)


def test_a_value_and_a_file_that_holds_it_are_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "eight").write_text("8")
    monkeypatch.setenv("SVC__WORKER__CONCURRENCY", "9")
    monkeypatch.setenv("SVC__WORKER__CONCURRENCY_FILE", str(tmp_path / "eight"))
    with pytest.raises(InvalidSettings, match="not both"):
        load_settings()


def test_flags_come_before_all_and_every_value_knows_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[worker]\nconcurrency = 7\ngrace_seconds = 11\n[log]\nlevel = 'debug'\n")
    monkeypatch.setenv("SVC__WORKER__CONCURRENCY", "9")
    monkeypatch.setenv("SVC__LOG__LEVEL", "error")
    flags = {"worker.concurrency": "3", "webhooks.allow_ports": "[443]"}
    loaded = load_with_sources(file, flags=flags)
    assert (loaded.settings.worker.concurrency, loaded.settings.webhooks.allow_ports) == (3, (443,))
    assert loaded.sources == {
        "worker.concurrency": "flag",
        "worker.grace_seconds": str(file),
        "log.level": "environment SVC__LOG__LEVEL",
        "webhooks.allow_ports": "flag",
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("worker.concurency", "3", "'concurrency'"),
        ("worker.concurrency", "0", r"worker\.concurrency: .*greater"),
        ("webhooks.allow_ports", "443,80", "as JSON"),
    ],
)
def test_a_wrong_flag_says_what_is_wrong(flag: str, value: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings(flags={flag: value})
