"""Named places where a test may make the process die.

In production ``reached`` does nothing. Crash tests install a hook that kills the process at the n-th time a
name is reached, so that "kill -9 after the claim's commit" is an exact place and not a matter of luck.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def install(hook: Callable[[str], None] | None) -> None:
    """Call ``hook(name)`` at every failpoint from now on; ``None`` takes it away."""
    global _hook
    _hook = hook


def reached(name: str) -> None:
    """Say that the failpoint ``name`` was reached."""
    if _hook is not None:
        _hook(name)
