"""What the pool of KV pages counts, and what it says of itself."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class PoolCounters:
    """What happened since the model was loaded; bytes, seconds."""

    pages_read: int = 0
    bytes_read: int = 0
    reads: int = 0
    pages_written: int = 0
    bytes_written: int = 0
    stall_seconds: float = 0.0
    """Seconds that computing waited for pages to be read, or for room."""
    drive_seconds: float = 0.0
    """Seconds in which at least one read was under way."""


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """A snapshot; bytes. ``host_bytes`` of ``host_budget`` are in use, ``flash_bytes`` of the file. ``host_limit`` is
    what memory pressure leaves of the budget. ``device_bytes`` of ``device_budget`` have copies in them."""

    host_bytes: int = 0
    host_budget: int = 0
    host_limit: int = 0
    flash_bytes: int = 0
    device_bytes: int = 0
    device_budget: int = 0
    counters: PoolCounters = field(default_factory=PoolCounters)
