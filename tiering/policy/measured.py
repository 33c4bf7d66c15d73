"""When and how well something of this machine was measured, and what other programs did meanwhile (pure)."""

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from .trust import Doubt, is_stale, replaces


@dataclass(frozen=True, slots=True)
class Measured:
    """``when`` it was measured (seconds since 1970) and looked at last (``seen``), how far its repeats lie apart, as a
    share, and the reasons to doubt it. ``others`` cores were used by other programs, and threads waited for a core for
    the share ``waited`` of their time. ``battery``: the machine ran on its battery when it was looked at last. Raises
    ValueError for impossible numbers."""

    when: float
    seen: float
    spread: float
    doubts: tuple[Doubt, ...]
    others: float
    waited: float
    battery: bool = False

    def __post_init__(self) -> None:
        most = {"when": 1e11, "seen": 1e11, "spread": 0.99, "others": 1e6, "waited": 0.99}
        if wrong := [name for name, bound in most.items() if not 0 <= getattr(self, name) <= bound]:
            raise ValueError(f"{', '.join(wrong)} cannot be so")
        if len(self.doubts) > len(get_args(Doubt)):
            raise ValueError("more doubts than there are")

    @property
    def doubtful(self) -> bool:
        """Whether there is a reason to doubt it."""
        return bool(self.doubts)

    def stale(self, now: float, *, battery: bool) -> bool:
        """Whether it has to be looked at again: it is old, or the machine has gone on or off its ``battery``."""
        return self.battery != battery or is_stale(self.seen, now, doubtful=self.doubtful)

    def replaces(self, kept: "Measured | None") -> bool:
        """Whether this is to be kept in place of ``kept``."""
        return kept is None or replaces(self.doubtful, kept.doubtful, self.when - kept.when)

    def seen_again(self, now: "Measured") -> "Measured":
        """The same, looked at again ``now``."""
        return replace(self, seen=now.seen, battery=now.battery)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON."""
        return asdict(self) | {"doubts": list(self.doubts)}

    def in_words(self, now: float) -> str:
        """How old and how sure it is, for people."""
        age = in_words_ago(now - self.when)
        said = f"measured {age}, {'on battery, ' * self.battery}repeats within {self.spread:.0%}"
        return f"{said}; doubtful: {doubts_in_words(self.doubts, self.others)}" if self.doubts else said


def doubts_in_words(doubts: tuple[Doubt, ...], others: float) -> str:
    """Reasons for doubt, for people."""
    words = {
        "cores": f"other programs used {others:.1f} cores",
        "drive": "other programs used the drive",
        "spread": "its repeats differ",
    }
    return ", ".join(words[doubt] for doubt in doubts)


def in_words_ago(seconds: float) -> str:
    """A time ago, for people."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now" if 0 <= seconds < 120 else "at a time to come"
