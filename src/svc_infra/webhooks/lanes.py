"""Lanes: how many deliveries each endpoint gets at a time, so that a slow one holds nobody else up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from svc_infra.webhooks.delivery_rows import ClaimedDelivery

_MAX_WINDOW = 400
_MAX_IDLE_LANES = 1_000


@dataclass(slots=True)
class Lane:
    """The claimed deliveries of one endpoint, each with the monotonic time before which it must be sent.

    ``window`` is how many may be claimed: it starts at what is sent at a time, grows with every quick success
    and falls back at every failure. So an endpoint that keeps up is claimed ahead in large batches, and one
    that hangs holds few leases.
    """

    in_flight_cap: int
    window: int
    waiting: deque[tuple[ClaimedDelivery, float]] = field(default_factory=deque)
    sending: int = 0
    senders: int = 0
    has_more: bool = False

    @property
    def held(self) -> int:
        """How many are claimed and not sent yet."""
        return len(self.waiting) + self.sending

    def adapt(self, *, was_quick: bool) -> None:
        """Learn from one attempt."""
        self.window = min(self.window + 1, _MAX_WINDOW) if was_quick else self.in_flight_cap

    def wants_refill(self) -> bool:
        """Whether more is known to be due and half of the window is free."""
        return self.has_more and (self.held <= self.window // 2 or self.held < self.in_flight_cap)


class Lanes:
    """All lanes of a deliverer."""

    def __init__(self, in_flight_cap: int) -> None:
        self.in_flight_cap = in_flight_cap
        self.held = 0
        self._lanes: dict[str, Lane] = {}

    def put(
        self, claimed: Sequence[ClaimedDelivery], allowances: Mapping[str, int], *, send_before: float
    ) -> list[Lane]:
        """Add what was claimed under ``allowances`` and return the lanes that got some."""
        received = Counter(delivery.endpoint_id for delivery in claimed)
        for delivery in claimed:
            self._lane(delivery.endpoint_id).waiting.append((delivery, send_before))
        self.held += len(claimed)
        for endpoint_id, lane in self._lanes.items():
            allowed = allowances.get(endpoint_id, self.in_flight_cap)
            if allowed:
                lane.has_more = received[endpoint_id] >= allowed
        return [self._lanes[endpoint_id] for endpoint_id in received]

    def _lane(self, endpoint_id: str) -> Lane:
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            lane = self._lanes[endpoint_id] = Lane(self.in_flight_cap, self.in_flight_cap)
        return lane

    def allowances(self) -> dict[str, int]:
        """Return how many more may be claimed for each endpoint; one that is not named may have the cap."""
        if len(self._lanes) > _MAX_IDLE_LANES:
            self._lanes = {key: lane for key, lane in self._lanes.items() if lane.held or lane.senders}
        free = {key: max(lane.window - lane.held, 0) for key, lane in self._lanes.items()}
        return {key: count for key, count in free.items() if count != self.in_flight_cap}

    def take_waiting(self) -> list[ClaimedDelivery]:
        """Take out everything whose sending has not begun."""
        taken = [delivery for lane in self._lanes.values() for delivery, _ in lane.waiting]
        for lane in self._lanes.values():
            lane.waiting.clear()
        self.held -= len(taken)
        return taken
