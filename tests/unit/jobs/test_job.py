from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.exceptions import InvalidPayload
from svc_infra.jobs.job import FINISHED, MAX_PAYLOAD_BYTES, JobRequest, JobState, encode_payload

NAIVE = datetime(2025, 1, 1)  # noqa: DTZ001 - a naive one is the case


def test_available_and_running_are_not_finished() -> None:
    assert set(JobState) - FINISHED == {JobState.AVAILABLE, JobState.RUNNING}


def test_a_payload_is_compact_json_with_exact_numbers_and_utc_instants() -> None:
    payload = {"total": Decimal("1.50"), "at": datetime(2025, 1, 1, tzinfo=UTC), "n": [1, 0.5, None, "é"]}
    assert encode_payload(payload) == '{"total":"1.5","at":"2025-01-01T00:00:00Z","n":[1,0.5,null,"é"]}'


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "ü"]), json_values))
def test_plain_json_data_comes_back_as_it_was(payload: dict[str, Any]) -> None:
    assert json.loads(encode_payload(payload)) == payload
    assert JobRequest("job", payload).payload == payload


def test_a_payload_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    frame = len('{"a":""}')
    assert len(encode_payload({"a": "x" * (MAX_PAYLOAD_BYTES - frame)})) == MAX_PAYLOAD_BYTES
    with pytest.raises(InvalidPayload, match="pass its id"):
        encode_payload({"a": "x" * (MAX_PAYLOAD_BYTES - frame + 1)})


def test_the_limit_counts_bytes_and_not_characters() -> None:
    with pytest.raises(InvalidPayload, match="limit"):
        encode_payload({"a": "é" * (MAX_PAYLOAD_BYTES // 2)})


@pytest.mark.parametrize("payload", [[1], "text", None, {"at": NAIVE}, {"x": float("nan")}, {"x": "\x00"}])
def test_a_payload_that_cannot_be_stored_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidPayload):
        encode_payload(payload)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x\x00"}, "name"),
        ({"queue": ""}, "queue"),
        ({"queue": "q" * 101}, "queue"),
        ({"tenant_id": ""}, "tenant_id"),
        ({"tenant_id": "t" * 256}, "tenant_id"),
        ({"priority": 2**31}, "priority"),
        ({"priority": -(2**31)}, "priority"),
        ({"run_at": NAIVE}, "run_at"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"payload": {"x": "\ud800"}}, r"payload\.x"),
    ],
)
def test_a_request_with_a_field_that_cannot_be_stored_is_refused_by_name(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidPayload, match=named):
        JobRequest(**{"name": "job", **fields})


def test_the_longest_fields_are_accepted() -> None:
    request = JobRequest("n" * 200, queue="q" * 100, tenant_id="t" * 255, priority=2**31 - 1, max_attempts=1)
    assert request.payload_json == "{}"


def test_a_request_is_a_copy_that_later_changes_do_not_reach() -> None:
    payload = {"lines": [Decimal("2.0")]}
    request = JobRequest("job", payload)
    payload["lines"].append(Decimal(3))
    assert request.payload == {"lines": ["2"]}
    assert request.payload_json == '{"lines":["2"]}'


def test_a_request_can_be_changed_by_copying() -> None:
    later = dataclasses.replace(JobRequest("job", {"a": 1}), run_at=datetime(2025, 1, 1, tzinfo=UTC))
    assert later.payload == {"a": 1}
    assert later.run_at == datetime(2025, 1, 1, tzinfo=UTC)
