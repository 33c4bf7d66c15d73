"""Finds deadlocks: streams that wait for room which only waiting streams could make (pure)."""

from collections.abc import Mapping, Set

from ..events import Stream


def stuck(waits: Mapping[Stream, str], holders: Mapping[str, Set[Stream]], *, takes_turns: str) -> set[Stream]:
    """The streams among ``waits`` for which no other stream will make room.

    ``waits`` maps each stream to the region in which it waits for room, ``holders`` maps each region to the streams
    with leases there. In the region ``takes_turns``, a waiting stream uses and releases what it holds. In other regions
    a waiting stream keeps its leases.
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
