"""The pages of docs/reference are what the code says."""

from __future__ import annotations

import pytest

from docs.write_reference import COMMAND, REFERENCE, pages
from svc_infra.api.fastapi.middleware.errors.kinds import ALL_KINDS


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return pages()


def test_the_reference_is_what_the_code_says(written: dict[str, str]) -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in REFERENCE.iterdir()}
    outdated = [name for name in written.keys() | kept.keys() if kept.get(name) != written.get(name)]
    assert outdated == [], f"write docs/reference anew with '{COMMAND}'"


def test_every_kind_of_problem_has_a_type_of_its_own() -> None:
    assert len({kind.type for kind in ALL_KINDS}) == len(ALL_KINDS)
