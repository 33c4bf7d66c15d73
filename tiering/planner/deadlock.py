"""Who waits for ever (pure): streams that wait for room which only others that wait for ever could make."""

from collections.abc import Mapping, Set

from ..events import Stream


def stuck(waits: Mapping[Stream, str], holders: Mapping[str, Set[Stream]], *, takes_turns: str) -> set[Stream]:
    """The streams among ``waits`` that nobody will ever make room for.

    ``waits`` says for room in which region a stream waits, ``holders`` who holds leases there. A stream that waits in
    the region ``takes_turns`` and holds something there uses it and gives it back meanwhile; elsewhere one that waits
    keeps what it has.
    """
    left = set(waits)
    while True:
        moving = {
            stream
            for stream in left
            if not holders[waits[stream]] <= left or (waits[stream] == takes_turns and stream in holders[waits[stream]])
        }
        if not moving:
            return left
        left -= moving
