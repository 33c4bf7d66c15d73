"""What limits a model that is served: the drive, memory, or computing (pure)."""

from dataclasses import dataclass
from typing import Literal

What = Literal["idle", "drive", "memory", "compute"]

CLEARLY = 0.25
"""Share of the time that computing waits, from which on it is what it waits for that limits."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Running totals in seconds, and what there is at one moment."""

    time: float
    stalled: float
    """Seconds that computing waited for weights."""
    kv_stalled: float
    """Seconds that computing waited for pages of KV, or for room for them."""
    reading: float
    """Seconds in which the drive read weights."""
    running: int = 0
    waiting: int = 0
    paused: int = 0
    rows: int = 1
    """Requests that are answered at a time."""
    memory: int = 0
    """Bytes of the host's memory that may be used now."""
    budget: int = 0
    """Bytes that are configured."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What limits, and why."""

    what: What
    why: str


def find_limit(before: Moment, now: Moment) -> Limit:
    """What limited between two moments."""
    seconds = max(now.time - before.time, 1e-9)
    stalled = min(1.0, (now.stalled - before.stalled) / seconds)
    kv_stalled = min(1.0, (now.kv_stalled - before.kv_stalled) / seconds)
    reading = min(1.0, (now.reading - before.reading) / seconds)
    if not (now.running or now.waiting or before.running):
        return Limit("idle", "no request is being answered")
    if kv_stalled >= CLEARLY:
        return Limit("memory", f"{kv_stalled:.0%} of the time goes to waiting for keys and values")
    if now.waiting and now.running + now.paused and now.running < now.rows:
        return Limit("memory", "requests wait for room for their keys and values")
    if stalled < CLEARLY:
        return Limit("compute", f"{1 - stalled:.0%} of the time goes to computing")
    waits = f"{stalled:.0%} of the time goes to waiting for weights"
    if now.memory < now.budget:
        return Limit("memory", f"{waits}, and other programs have taken memory")
    return Limit("drive", f"{waits}; the drive is busy for {reading:.0%}")
