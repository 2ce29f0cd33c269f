"""A lane of a worker: the names of one kind of handler, and how many of their jobs it has in hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from svc_infra.jobs.job import Job
from svc_infra.jobs.slots import Slots

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
    in hand, and takes some beyond its capacity, so that none waits until those before it are claimed.
    """

    def __init__(self, names: Collection[str], slots: Slots, capacity: int) -> None:
        self.names = names
        self.slots = slots
        self.has_backlog = False
        self.has_news = False
        self._looked_at = 0.0
        self._has_found = False
        self._capacity = capacity
        self._in_hand = 0
        self._of_tenants: Counter[str] = Counter()
        self._seconds_in_hand = _QUICK_SECONDS

    def room(self) -> int:
        """How many jobs to claim now: none until half of the capacity is free."""
        capacity = self._capacity_now()
        return capacity - self._in_hand if self._in_hand <= capacity // 2 else 0

    def room_for_turns(self) -> int:
        """How many jobs to claim now of tenants in turn: at most half of the capacity, even beyond it."""
        capacity = self._capacity_now()
        return max(0, min(capacity // 2, capacity + capacity // 2 - self._in_hand))

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

    def looked(self, now: float, *, has_found: bool) -> None:
        """Have looked for tenants that wait, and found some or none."""
        self._looked_at, self._has_found = now, has_found

    def started(self, jobs: Sequence[Job]) -> None:
        """Have ``jobs`` in hand."""
        self._in_hand += len(jobs)
        self._of_tenants.update(job.tenant_id for job in jobs if job.tenant_id is not None)

    def ended(self, jobs: Sequence[Job], *, seconds_in_hand: float) -> None:
        """Let go of ``jobs`` that were in hand for so long, waiting for a slot and running."""
        self._in_hand -= len(jobs)
        self._seconds_in_hand = seconds_in_hand
        for job in jobs:
            if job.tenant_id is not None:
                self._of_tenants[job.tenant_id] -= 1
                if not self._of_tenants[job.tenant_id]:
                    del self._of_tenants[job.tenant_id]

    def _capacity_now(self) -> int:
        return self._capacity * 2 if self._seconds_in_hand < _QUICK_SECONDS else self._capacity
