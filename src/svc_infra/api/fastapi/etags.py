"""Entity tags: which state of a record an answer shows, and which one an act is meant for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

from fastapi import Header

from svc_infra.api.fastapi.middleware.errors.kinds import CHANGED_MEANWHILE, IF_MATCH_MISSING
from svc_infra.api.fastapi.middleware.errors.problem import Refusal

IfMatch = Annotated[
    list[str] | None,
    Header(alias="If-Match", description="The ETag that was read; * for whatever its state is."),
]
IfNoneMatch = Annotated[
    list[str] | None, Header(alias="If-None-Match", description="Answer 304 if this ETag is still right.")
]


def etag_of(*state: object) -> str:
    """The strong tag of a state, given as everything that can change of it."""
    return f'"{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}"'


def require_match(wanted: Sequence[str] | None, etag: str) -> None:
    """Let an act go on only if it is meant for the state that ``etag`` names.

    Raises:
        Refusal: 428 without ``If-Match``, 412 if it names another state.
    """
    if not wanted:
        raise Refusal(IF_MATCH_MISSING, "Send If-Match with the ETag that you have read, or * for any state.")
    tags = _tags(wanted)
    if "*" not in tags and etag not in tags:
        raise Refusal(CHANGED_MEANWHILE, "Read it again, and decide anew.", {"ETag": etag})


def is_known(wanted: Sequence[str] | None, etag: str) -> bool:
    """Whether the caller has this state already (``If-None-Match``, compared weakly)."""
    tags = [tag.removeprefix("W/") for tag in _tags(wanted or ())]
    return "*" in tags or etag in tags


def _tags(headers: Sequence[str]) -> list[str]:
    # Ours hold no comma; one that does is nobody's.
    return [tag.strip() for header in headers for tag in header.split(",")]
