"""Lanes: how many deliveries each endpoint gets at a time, so that a slow one holds nobody else up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from svc_infra.webhooks.claimed_delivery import ClaimedDelivery

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
    rated_ahead_seconds: float = 2.0
    waiting: deque[tuple[ClaimedDelivery, float]] = field(default_factory=deque)
    sending: int = 0
    senders: int = 0
    has_more: bool = False
    rate_per_second: float | None = None
    slowed_to: float | None = None
    next_slot_at: float = 0.0
    failures_in_a_row: int = 0

    @property
    def senders_allowed(self) -> int:
        """How many requests may be under way at once: fewer for an endpoint that shows it is overloaded."""
        return self.in_flight_cap if self.slowed_to is None else max(int(self.slowed_to), 1)

    @property
    def held(self) -> int:
        """How many are claimed and not sent yet."""
        return len(self.waiting) + self.sending

    def adapt(self, *, is_delivered: bool, was_quick: bool, is_overloaded: bool) -> None:
        """Learn from one attempt.

        Overload halves what is under way at once, every success after it allows a little more again.
        """
        self.failures_in_a_row = 0 if is_delivered else self.failures_in_a_row + 1
        if is_overloaded:
            self.slowed_to = max(self.senders_allowed / 2, 1.0)
        elif is_delivered and self.slowed_to is not None:
            self.slowed_to += 1 / self.slowed_to
            if self.slowed_to >= self.in_flight_cap:
                self.slowed_to = None
        ahead = self.window + 1 if is_delivered and was_quick else self.senders_allowed
        self.window = min(ahead, self._max_window())

    def next_slot(self, now: float) -> float:
        """Take the next place in the endpoint's rate and return the seconds until then (0 without a rate)."""
        if self.rate_per_second is None:
            return 0.0
        slot_at = max(self.next_slot_at, now)
        self.next_slot_at = slot_at + 1 / self.rate_per_second
        return slot_at - now

    def free(self, now: float) -> int:
        """Return how many more may be claimed: with a rate, only what gets its place in it soon.

        What waits for its place holds a lease meanwhile; one that ends before the place comes would be
        claimed again and again and never be sent.
        """
        room = self.window - self.held
        if self.rate_per_second is not None:
            seconds = now + self.rated_ahead_seconds - max(self.next_slot_at, now)
            places = int(seconds * self.rate_per_second) + 1 if seconds >= 0 else 0
            room = min(room, places - len(self.waiting))
        return max(room, 0)

    def learn_options(self, delivery: ClaimedDelivery, default_cap: int) -> None:
        """Take over the endpoint's own caps as they are now."""
        self.in_flight_cap = delivery.in_flight_cap or default_cap
        self.rate_per_second = delivery.rate_per_second
        self.window = min(max(self.window, self.senders_allowed), self._max_window())

    def _max_window(self) -> int:
        # What waits for its place in a rate holds a lease meanwhile, so little is claimed ahead.
        if self.rate_per_second is None:
            return _MAX_WINDOW
        return max(int(self.rate_per_second * self.rated_ahead_seconds), 1)

    def wants_refill(self) -> bool:
        """Whether more is known to be due and half of the window is free."""
        return self.has_more and (self.held <= self.window // 2 or self.held < self.in_flight_cap)


class Lanes:
    """All lanes of a deliverer."""

    def __init__(self, in_flight_cap: int, *, rated_ahead_seconds: float = 2.0) -> None:
        self.in_flight_cap = in_flight_cap
        self._rated_ahead_seconds = rated_ahead_seconds
        self.held = 0
        self._lanes: dict[str, Lane] = {}

    def put(
        self, claimed: Sequence[ClaimedDelivery], allowances: Mapping[str, int], *, send_before: float
    ) -> list[Lane]:
        """Add what was claimed under ``allowances`` and return the lanes that got some."""
        received = Counter(delivery.endpoint_id for delivery in claimed)
        for delivery in claimed:
            lane = self._lane(delivery.endpoint_id)
            lane.learn_options(delivery, self.in_flight_cap)
            lane.waiting.append((delivery, send_before))
        self.held += len(claimed)
        for endpoint_id, lane in self._lanes.items():
            allowed = allowances.get(endpoint_id, self.in_flight_cap)
            if allowed:
                lane.has_more = received[endpoint_id] >= allowed
        return [self._lanes[endpoint_id] for endpoint_id in received]

    def _lane(self, endpoint_id: str) -> Lane:
        lane = self._lanes.get(endpoint_id)
        if lane is None:
            lane = Lane(self.in_flight_cap, self.in_flight_cap, self._rated_ahead_seconds)
            self._lanes[endpoint_id] = lane
        return lane

    @property
    def is_crowded(self) -> bool:
        """Whether some endpoint has more due than it takes, so that it may stand before the others."""
        return any(lane.has_more for lane in self._lanes.values())

    def allowances(self, now: float) -> dict[str, int]:
        """Return how many more may be claimed for each endpoint; one that is not named may have the cap."""
        if len(self._lanes) > _MAX_IDLE_LANES:
            self._lanes = {
                key: lane
                for key, lane in self._lanes.items()
                if lane.held or lane.senders or lane.next_slot_at > now
            }
        free = {key: lane.free(now) for key, lane in self._lanes.items()}
        return {key: count for key, count in free.items() if count != self.in_flight_cap}

    def take_waiting(self, lane: Lane | None = None) -> list[ClaimedDelivery]:
        """Take out everything whose sending has not begun, of ``lane`` or of all."""
        lanes = list(self._lanes.values()) if lane is None else [lane]
        taken = [delivery for one in lanes for delivery, _ in one.waiting]
        for one in lanes:
            one.waiting.clear()
        self.held -= len(taken)
        return taken
