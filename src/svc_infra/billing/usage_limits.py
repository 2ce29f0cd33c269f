"""Which well-formed usage is refused all the same, and with what reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from svc_infra.billing.metering import Metering
from svc_infra.billing.usage_event import NewUsage
from svc_infra.canonical import canonical_instant


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """How far from now usage may lie; None is no limit."""

    past: timedelta | None = None
    future: timedelta | None = None

    @classmethod
    def of(cls, past_days: float, future_seconds: float) -> UsageLimits:
        """The limits as the settings give them, 0 for none."""
        return cls(
            timedelta(days=past_days) if past_days else None,
            timedelta(seconds=future_seconds) if future_seconds else None,
        )

    def refusals(
        self, events: Mapping[int, NewUsage], meterings: Mapping[str, Metering], now: datetime
    ) -> dict[int, str]:
        """The reasons of those that are refused, by their keys.

        ``meterings`` are those of the metrics that have a negative amount among the events.
        """
        refused = {}
        for key, event in events.items():
            if event.amount < 0 and not meterings[event.metric].takes_negative:
                refused[key] = (
                    f"amount is {event.amount}; a quantity of {event.metric!r} cannot be negative, "
                    "correct recorded usage by amending or voiding it"
                )
            elif self.future is not None and event.at > now + self.future:
                refused[key] = f"at is {canonical_instant(event.at)}, more than {self.future} in the future"
            elif self.past is not None and event.at < now - self.past:
                refused[key] = f"at is {canonical_instant(event.at)}, more than {self.past} ago"
        return refused


NO_LIMITS = UsageLimits()
