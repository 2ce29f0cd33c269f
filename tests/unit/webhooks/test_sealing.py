from __future__ import annotations

import base64
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidSecret, InvalidSettings
from svc_infra.webhooks.sealing import KeyRing, SecretPlace, WebhookSecrets, is_sealed, new_sealing_key
from svc_infra.webhooks.signature import new_secret, sign

PLACE = SecretPlace("acme", "endpoint-1", 1)
CANARY = "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5"


def ring(*ids: str) -> KeyRing:
    return KeyRing({key_id: os.urandom(32) for key_id in ids})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_opens_in_its_place(secret: str) -> None:
    keys = ring("k1")
    assert keys.open_sealed(keys.seal(secret, PLACE), PLACE) == secret


def test_the_sealed_text_names_its_key_and_hides_the_secret() -> None:
    keys = ring("k2", "k1")
    sealed = keys.seal(CANARY, PLACE)
    assert sealed.startswith("enc:v1:k2:")
    assert is_sealed(sealed)
    assert not is_sealed(CANARY)
    assert CANARY.encode() not in base64.b64decode(sealed.split(":")[3])
    assert keys.seal(CANARY, PLACE) != sealed


@pytest.mark.parametrize(
    "other",
    [
        replace(PLACE, tenant_id="rival"),
        replace(PLACE, tenant_id=None),
        replace(PLACE, tenant_id=""),
        replace(PLACE, endpoint_id="endpoint-2"),
        replace(PLACE, version=2),
        SecretPlace('acme","endpoint-1', "", 1),
    ],
)
def test_a_sealed_secret_opens_nowhere_else(other: SecretPlace) -> None:
    keys = ring("k1")
    with pytest.raises(InvalidSecret) as caught:
        keys.open_sealed(keys.seal(CANARY, PLACE), other)
    assert caught.value.__cause__ is None
    assert "acme" not in str(caught.value)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_sealed_secret_does_not_open(position: int, change: int) -> None:
    keys = ring("k1")
    head, _, encoded = keys.seal(CANARY, PLACE).rpartition(":")
    raw = bytearray(base64.b64decode(encoded))
    raw[position % len(raw)] ^= change
    with pytest.raises(InvalidSecret):
        keys.open_sealed(f"{head}:{base64.b64encode(raw).decode()}", PLACE)


@pytest.mark.parametrize(
    "text",
    ["", "enc:v1:", "enc:v1:k1", "enc:v1:k1:", "enc:v1:k1:!", "enc:v1:k1:AAAA", "enc:v2:k1:AAAA", CANARY],
)
def test_what_is_no_sealed_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        ring("k1").open_sealed(text, PLACE)
    assert not text or text not in str(caught.value)


def test_a_key_that_is_gone_is_named_and_another_one_of_the_same_id_does_not_open() -> None:
    sealed = ring("k1").seal(CANARY, PLACE)
    with pytest.raises(InvalidSecret, match="'k1'"):
        ring("k2").open_sealed(sealed, PLACE)
    with pytest.raises(InvalidSecret, match="'k1'"):
        ring("k1").open_sealed(sealed, PLACE)


def test_rotation_opens_with_the_old_key_and_seals_with_the_new_one() -> None:
    old, new = os.urandom(32), os.urandom(32)
    sealed = KeyRing({"k1": old}).seal(CANARY, PLACE)
    both = KeyRing({"k2": new, "k1": old})
    assert both.open_sealed(sealed, PLACE) == CANARY
    assert both.needs_resealing(sealed)
    resealed = both.reseal(sealed, PLACE)
    assert not both.needs_resealing(resealed)
    assert KeyRing({"k2": new}).open_sealed(resealed, PLACE) == CANARY


def test_resealing_moves_a_secret_to_its_row_s_next_version() -> None:
    keys, next_place = ring("k1"), replace(PLACE, version=2)
    moved = keys.reseal(keys.seal(CANARY, PLACE), PLACE, new_place=next_place)
    assert keys.open_sealed(moved, next_place) == CANARY
    with pytest.raises(InvalidSecret):
        keys.open_sealed(moved, PLACE)


def test_the_settings_form_is_read_newest_first() -> None:
    one, two = new_sealing_key("2026-11"), new_sealing_key("2026-05")
    for text in (f"{one},{two}", f"{one}\n{two}\n", f" {one} , {two}"):
        keys = KeyRing.parse(text)
        assert keys.seal("a", PLACE).startswith("enc:v1:2026-11:")
        assert keys.open_sealed(KeyRing.parse(two).seal("a", PLACE), PLACE) == "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k1",
        "k1:",
        "k1:canary!",
        "k1:" + base64.b64encode(b"canary").decode(),
        "k1:" + base64.b64encode(b"0" * 32).decode(),
        "k1:" + base64.b64encode(b"change-me-change-me-change-me-ch").decode(),
        "k 1:AAAA",
        ":" + base64.b64encode(bytes(range(32))).decode(),
        ",".join("k1:" + base64.b64encode(bytes(range(n, n + 32))).decode() for n in (1, 2)),
    ],
)
def test_keys_that_protect_nothing_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        KeyRing.parse(text)
    encoded = text.partition(":")[2]
    assert not encoded or encoded not in str(caught.value)


def test_opened_secrets_and_the_ring_show_nothing_of_themselves() -> None:
    key = os.urandom(32)
    keys, secrets = KeyRing({"k1": key}), WebhookSecrets((CANARY, new_secret()))
    for text in (repr(secrets), str(secrets), f"{secrets}", f"{secrets!r:>40}", repr(keys), str([secrets])):
        assert CANARY not in text
        assert base64.b64encode(key).decode() not in text
    assert repr(keys) == "KeyRing(k1)"


def test_opened_secrets_sign_like_any_sequence_of_them() -> None:
    secrets = WebhookSecrets((new_secret(), CANARY))
    assert (len(secrets), secrets[1], secrets[1:]) == (2, CANARY, (CANARY,))
    assert sign("msg_1", 1, b"", secrets) == sign("msg_1", 1, b"", list(secrets))
