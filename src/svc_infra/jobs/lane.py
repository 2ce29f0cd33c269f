"""A lane of a worker: the names of one kind of handler, and how many of their jobs it has in hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from svc_infra.jobs.handlers import HandlerKind, Handlers
from svc_infra.jobs.job import Job
from svc_infra.jobs.slots import Slots

_PLAIN_JOBS = 8
# One more may run than that, of a tenant of which none runs: a tenant with slow jobs leaves others this.
_HEAD_ROOM = 1
# Enough jobs in hand that a claim's round trip is small beside them, few enough for others to get some.
_PREFETCHED_PER_SLOT = 8
# Where what is in hand is done sooner than this, twice as much is taken, to run while the next claim is made.
_QUICK_SECONDS = 0.5
# The part of a lane that one turn gives to a tenant: about as many jobs as may run at once.
_PARTS = 8
# Looking for other tenants costs about a millisecond. It is done at once after an enqueue, or if there were
# some at the last look, but not more often than this; otherwise for those whose run_at has come.
_LOOK_SECONDS = 0.005
_IDLE_LOOK_SECONDS = 0.25


class Lane:
    """Counts what a worker has in hand of some names, and says how many jobs to claim.

    While more is due than was claimed (``has_backlog``), the lane looks for jobs of tenants that have little
    in hand, and takes some beyond its capacity, so that none waits until those before it are claimed. It
    looks soon where something was enqueued (``has_news``), and waits for room if need be (``wants_turns``).
    """

    def __init__(self, names: Collection[str], slots: Slots, capacity: int) -> None:
        self.names = names
        self.slots = slots
        self.has_backlog = False
        self.has_news = False
        self.wants_turns = False
        self._looked_at = 0.0
        self._has_found = False
        self._capacity = capacity
        self._in_turn: set[str] = set()
        self._in_hand = 0
        self._of_tenants: Counter[str] = Counter()
        self._seconds_in_hand = _QUICK_SECONDS

    @property
    def is_busy(self) -> bool:
        """Whether anything is in hand, or more is due than was claimed."""
        return self._in_hand > 0 or self.has_backlog

    def room(self) -> int:
        """How many jobs to claim now: none until half of the capacity is free."""
        capacity = self._capacity_now()
        return capacity - self._in_hand if self._in_hand <= capacity // 2 else 0

    def room_for_turns(self) -> int:
        """How many jobs to claim now of tenants in turn: half of the capacity, beyond all others in hand."""
        return max(0, self._capacity // 2 - len(self._in_turn))

    def each(self) -> int:
        """How many jobs of one tenant are claimed in its turn."""
        return max(1, self._capacity // _PARTS)

    def tenants_in_hand(self) -> list[str]:
        """The tenants that need no turn: they have as many in hand as one turn gives."""
        return [tenant for tenant, jobs in self._of_tenants.items() if jobs >= self.each()]

    def seconds_to_look(self, now: float) -> float:
        """In how many seconds to look for tenants that wait; ``now`` is monotonic."""
        is_likely = self.has_news or self._has_found
        return self._looked_at + (_LOOK_SECONDS if is_likely else _IDLE_LOOK_SECONDS) - now

    def claimed(self, jobs: Sequence[Job], room: int) -> None:
        """Have claimed ``jobs`` where there was ``room``: with fewer, nothing due is left.

        A rescued job comes alone, whatever else is due.
        """
        self.has_backlog = len(jobs) >= room or any(job.rescues for job in jobs)
        self.has_news = self.has_news and self.has_backlog

    def looked(self, now: float, *, has_found: bool) -> None:
        """Have looked for tenants that wait, and found some or none."""
        self._looked_at, self._has_found = now, has_found

    def started(self, jobs: Sequence[Job], *, in_turn: bool) -> None:
        """Have ``jobs`` in hand, which were claimed in turn or in the common order."""
        self._in_hand += len(jobs)
        if in_turn:
            self._in_turn.update(job.id for job in jobs)
        self._of_tenants.update(job.tenant_id for job in jobs if job.tenant_id is not None)

    def ended(self, jobs: Sequence[Job], *, seconds_in_hand: float) -> None:
        """Let go of ``jobs`` that were in hand for so long, waiting for a slot and running."""
        self._in_hand -= len(jobs)
        self._seconds_in_hand = seconds_in_hand
        for job in jobs:
            self._in_turn.discard(job.id)
            if job.tenant_id is not None:
                self._of_tenants[job.tenant_id] -= 1
                if not self._of_tenants[job.tenant_id]:
                    del self._of_tenants[job.tenant_id]

    def _capacity_now(self) -> int:
        return self._capacity * 2 if self._seconds_in_hand < _QUICK_SECONDS else self._capacity


def make_lanes(handlers: Handlers, concurrency: int) -> list[Lane]:
    """Return a lane for each kind of handlers that there are, for so many transactions at once."""
    # Where one transaction runs at a time, another beside it could only wait for it.
    transactions = Slots(concurrency, head_room=0 if concurrency == 1 else _HEAD_ROOM)
    lanes = []
    for kind, slots, width in (
        (HandlerKind.BATCH, transactions, concurrency),
        (HandlerKind.JOB, transactions, concurrency),
        (HandlerKind.PLAIN, Slots(_PLAIN_JOBS, head_room=_HEAD_ROOM), _PLAIN_JOBS),
    ):
        chosen = [registration for registration in handlers if registration.kind is kind]
        if chosen:
            is_batch = kind is HandlerKind.BATCH
            size = max(each.batch_size for each in chosen) if is_batch else _PREFETCHED_PER_SLOT
            lanes.append(Lane(frozenset(each.name for each in chosen), slots, width * size))
    return lanes
