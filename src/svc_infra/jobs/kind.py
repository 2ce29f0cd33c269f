"""A kind of job: its name, the shape of its payload, and what its jobs have by default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from svc_infra.exceptions import InvalidPayload, InvalidSettings
from svc_infra.jobs.job import DEFAULT_QUEUE, Job, JobRequest, require_one_key
from svc_infra.jobs.limit import Limit
from svc_infra.jobs.rate import Rate
from svc_infra.jobs.retry import RetryPolicy

DEFAULT_TIMEOUT_SECONDS = 300.0
Payload: TypeAlias = dict[str, Any] | BaseModel | None


@dataclass(frozen=True, slots=True)
class JobKind:
    """What the jobs of one name have in common; enqueue with it and register its handler under it.

    ``payload`` is a pydantic model that every payload must fit. ``version`` counts up when a handler of
    before could not read the new payloads: a worker leaves jobs of a newer version for a newer worker.
    ``limit`` (how many run at once) and ``rate`` (how many start in a stretch of time) hold for the jobs
    enqueued with them, in all processes together.

    Raises:
        InvalidSettings: the version or the timeout is not positive, or limit and rate go by different keys.
    """

    name: str
    payload: type[BaseModel] | None = None
    version: int = 1
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    max_attempts: int | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    limit: Limit | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        if self.version < 1 or not 0 < self.timeout_seconds < math.inf:
            raise InvalidSettings(f"job kind {self.name!r}: version and timeout_seconds must be positive")
        require_one_key(self.name, self.limit, self.rate)

    def request(
        self, payload: Payload = None, *, run_at: datetime | None = None, **fields: Any
    ) -> JobRequest:
        """Return the checked request of a job of this kind; ``fields`` come before the kind's defaults.

        Raises:
            InvalidPayload: the payload does not fit the model, or the request cannot be stored.
        """
        defaults = {"queue": self.queue, "priority": self.priority, "max_attempts": self.max_attempts}
        chosen = {
            **defaults,
            **fields,
            "payload_version": self.version,
            "limit": self.limit,
            "rate": self.rate,
        }
        return JobRequest(self.name, self._plain(payload), run_at=run_at, **chosen)

    def payload_of(self, job: Job) -> Any:
        """Return the payload of ``job`` as an object of the model, or as it is where there is none.

        Raises:
            InvalidPayload: it does not fit the model.
        """
        return job.payload if self.payload is None else self._validated(job.payload)

    def _plain(self, payload: Payload) -> dict[str, Any]:
        if self.payload is not None:
            payload = self._validated(payload or {})
        return payload.model_dump(mode="json") if isinstance(payload, BaseModel) else payload or {}

    def _validated(self, payload: dict[str, Any] | BaseModel) -> BaseModel:
        assert self.payload is not None  # both callers have looked
        plain = payload.model_dump() if isinstance(payload, BaseModel) else payload
        try:
            return self.payload.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "it"
            raise InvalidPayload(f"the payload of {self.name!r}: {place}: {first['msg']}") from None
