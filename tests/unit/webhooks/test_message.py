from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from svc_infra.exceptions import InvalidPayload, InvalidTopic
from svc_infra.webhooks.message import MAX_BODY_BYTES, Message, check_topic, encode_body, new_message_id

AT = datetime(2025, 2, 1, tzinfo=UTC)
NAIVE = datetime(2025, 2, 1)  # noqa: DTZ001 - a naive one is the case


def test_the_body_is_the_compact_envelope_with_exact_values() -> None:
    body = encode_body(
        "billing.usage_aggregated",
        datetime(2025, 2, 1, 1, 0, tzinfo=timezone(timedelta(hours=1))),
        {
            "tenant_id": "tänant",
            "total": Decimal("42.500"),
            "zero": Decimal("-0"),
            "big": Decimal("1E+3"),
            "day_start": datetime(2025, 1, 31, 0, 0, 0, 1, tzinfo=UTC),
            "lines": [1, True, None],
        },
    )
    assert body.decode() == (
        '{"type":"billing.usage_aggregated","timestamp":"2025-02-01T00:00:00Z","data":{"tenant_id":"tänant",'
        '"total":"42.5","zero":"0","big":"1000","day_start":"2025-01-31T00:00:00.000001Z",'
        '"lines":[1,true,null]}}'
    )


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"total": 1.5}, r"payload\.total: a float"),
        ({"total": float("nan")}, r"payload\.total"),
        ({"total": Decimal("NaN")}, r"payload\.total"),
        ({"total": Decimal("Infinity")}, r"payload\.total"),
        ({"at": NAIVE}, r"payload\.at"),
        ({"name": "a\x00b"}, r"payload\.name: NUL"),
        ({"name": "\udfff"}, r"payload\.name: a lone surrogate"),
        ({"name": b"x"}, r"payload\.name"),
        ([], "is a dict"),
    ],
)
def test_a_payload_without_an_exact_json_form_is_refused(payload: Any, named: str) -> None:
    with pytest.raises(InvalidPayload, match=named):
        encode_body("topic", AT, payload)


def test_a_naive_instant_of_the_event_is_refused() -> None:
    with pytest.raises(InvalidPayload, match="offset"):
        encode_body("topic", NAIVE, {})


def test_a_body_over_the_limit_is_refused() -> None:
    frame = len(encode_body("t", AT, {"a": ""}))
    assert len(encode_body("t", AT, {"a": "x" * (MAX_BODY_BYTES - frame)})) == MAX_BODY_BYTES
    with pytest.raises(InvalidPayload, match="limit"):
        encode_body("t", AT, {"a": "x" * (MAX_BODY_BYTES - frame + 1)})


@pytest.mark.parametrize("topic", ["a", "billing.invoice.created", "A_1.b2", "x" * 200])
def test_a_topic_of_words_joined_by_dots_is_accepted(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic", ["", ".", "a.", ".a", "a..b", "a b", "a-b", "billing.*", "é", "a\n", "a.b\n", "x" * 201, None, 7]
)
def test_a_topic_with_other_syntax_is_refused(topic: Any) -> None:
    with pytest.raises(InvalidTopic):
        encode_body(topic, AT, {})


def test_message_ids_are_uuid7_without_a_dot_and_differ() -> None:
    ids = {new_message_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch(r"msg_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", one) for one in ids)


def test_the_repr_of_a_message_does_not_show_its_body() -> None:
    body = encode_body("topic", AT, {"canary": "planted"})
    assert json.loads(body)["data"] == {"canary": "planted"}
    assert "planted" not in repr(Message("msg_1", "topic", "t1", body, AT))
