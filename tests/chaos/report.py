"""What a run of chaos did, and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PROMISED_SECONDS = 45.0


@dataclass
class Report:
    """What was done and what came of it."""

    acts: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    terminal: int = 0
    lost: int = 0
    effects_twice: int = 0
    effects_missing: int = 0
    stale_offered: int = 0
    stale_accepted: int = 0
    rescued: int = 0
    worst_recovery_seconds: float = 0.0
    bad_exits: list[int] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return what should not be so."""
        wrong = [
            f"{name} is {number}"
            for name in ("lost", "effects_twice", "effects_missing", "stale_accepted")
            if (number := getattr(self, name))
        ]
        if self.terminal < self.accepted:
            wrong.append(f"{self.accepted - self.terminal} accepted jobs are not terminal")
        if self.worst_recovery_seconds > PROMISED_SECONDS:
            wrong.append(f"a recovery took {self.worst_recovery_seconds:.1f} s")
        if self.bad_exits:
            wrong.append(f"workers that were told to stop exited with {self.bad_exits}")
        return wrong

    def lines(self) -> list[str]:
        acts = ", ".join(f"{number} x {act}" for act, number in sorted(self.acts.items()))
        return [
            f"acts: {acts}",
            f"jobs accepted: {self.accepted}, terminal: {self.terminal}, lost: {self.lost}",
            f"effects twice: {self.effects_twice}, missing: {self.effects_missing}",
            f"stale writes offered: {self.stale_offered}, accepted: {self.stale_accepted}",
            f"jobs rescued: {self.rescued}, worst recovery: {self.worst_recovery_seconds:.1f} s",
        ]


def worst_recovery(starts: Path, killed_at: dict[int, float]) -> float:
    """Return the longest time from the kill of a worker until a job that it had begun began again.

    Leave out workers that were paused before: one that sleeps in a transaction keeps its rows locked.
    """
    attempts: dict[str, dict[int, tuple[int, float, int]]] = {}
    for line in starts.read_text(encoding="utf-8").splitlines():
        job_id, attempt, rescues, at, pid = line.split()
        attempts.setdefault(job_id, {}).setdefault(int(attempt), (int(rescues), float(at), int(pid)))
    worst = 0.0
    for by_number in attempts.values():
        for number, (rescues, _, pid) in by_number.items():
            following = by_number.get(number + 1)
            if following is not None and following[0] > rescues and pid in killed_at:
                worst = max(worst, following[1] - killed_at[pid])
    return worst
