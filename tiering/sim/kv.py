"""What keys and values of a long context add to a token (pure): bytes, and the time of drive and cores."""

from dataclasses import dataclass

from ..kv.memory import RING
from .devices import Drive, Memory


@dataclass(frozen=True, slots=True)
class KvLoad:
    """``total`` bytes of a context's KV, ``per_token`` for one more token. ``flash`` bytes of it lie on flash, and each
    token reads them all."""

    per_token: int
    total: int
    flash: int

    @classmethod
    def of(cls, per_token: int, total: int, host: int | None) -> "KvLoad":
        """With ``host`` bytes of memory for pages, of which a share is left to those passing through; None: KV is not
        in pages, and all of it in memory."""
        return cls(per_token, total, 0 if host is None else max(0, total - int(host * (1 - RING))))


def seconds_with(kv: KvLoad, seconds: float, read: float, drive: Drive, memory: Memory) -> tuple[float, float]:
    """Seconds of a token that takes ``seconds`` without KV and reads ``read`` bytes of weights; and those in which the
    drive is busy.

    A bound: the drive never waits, so a token takes as long as the drive for all reads, or as the cores: these look at
    all KV at the speed at which they take weights out of memory, and lose what a drive beside them costs.
    """
    pace = drive.bandwidth * (1 - drive.contention)
    busy = (read + kv.flash) / pace
    cores = seconds + memory.seconds(kv.total) + memory.contention * kv.flash / pace + kv.flash / drive.checksum
    return max(busy, cores), busy
