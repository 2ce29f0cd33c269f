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
        if self.shared_key is not None:
            return self.shared_key[:MAX_KEY_LENGTH]
        return name if self.field is None else f"{name}:{payload.get(self.field)}"[:MAX_KEY_LENGTH]
