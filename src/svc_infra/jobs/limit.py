"""How many jobs of a kind may run at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svc_infra.exceptions import InvalidSettings

MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``slots`` jobs of a kind run at once, or of each key that the payload has in ``field``.

    With ``shared_key`` it is those of all kinds that share this key.

    Raises:
        InvalidSettings: ``slots`` is not positive.
    """

    slots: int
    field: str | None = None
    shared_key: str | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise InvalidSettings(f"a limit of {self.slots} jobs at once lets none run; the least is 1")

    def key(self, name: str, payload: Mapping[str, Any]) -> str:
        """Return what the jobs that share this limit have in common."""
        return shared_by(name, payload, field=self.field, shared_key=self.shared_key)


def shared_by(name: str, payload: Mapping[str, Any], *, field: str | None, shared_key: str | None) -> str:
    """Return the key of a job: the shared one, or its name with what its payload has in ``field``."""
    if shared_key is not None:
        return shared_key[:MAX_KEY_LENGTH]
    return name if field is None else f"{name}:{payload.get(field)}"[:MAX_KEY_LENGTH]
