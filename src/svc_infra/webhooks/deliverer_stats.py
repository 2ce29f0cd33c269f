"""What a deliverer has done so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from svc_infra.webhooks.claimed_delivery import DeliveryResult
from svc_infra.webhooks.metrics import ATTEMPTS


@dataclass(slots=True)
class DelivererStats:
    """Attempts recorded by this deliverer since it was made, by what became of the delivery.

    ``lost`` are results that were not recorded because another deliverer had rescued the delivery.
    ``outcomes`` are the recorded attempts by their class (``delivery.AttemptOutcome``), ``duration_ms`` how
    long those took in all.
    """

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    lost: int = 0
    duration_ms: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def count(self, results: Sequence[DeliveryResult], held: Collection[str]) -> None:
        """Count ``results``, of which those in ``held`` were recorded."""
        for result in results:
            if result.delivery.id not in held:
                self.lost += 1
                continue
            self.outcomes[result.verdict.outcome.value] += 1
            ATTEMPTS.labels(result.verdict.outcome.value).inc()
            self.duration_ms += result.result.duration_ms
            if result.verdict.state == "delivered":
                self.delivered += 1
            elif result.verdict.state == "dead":
                self.dead += 1
            else:
                self.failed += 1
