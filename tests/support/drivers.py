"""Reads for a driver over a fake drive, and threads to run it from."""

import threading
from collections.abc import Callable

from penstock.tiering.events import Part, Read, Slot
from penstock.tiering.units import PAGE, BlockId, Extent

SOON = 10.0
"""Seconds after which a test gives up on what should take no time."""

BLOCKS = [BlockId("expert", "m", part) for part in range(8)]


def read(number: int, *parts: int) -> Read:
    """Read number ``number``, of ``parts``, each into the slot of its own number."""
    made = (Part(BLOCKS[n], Extent(0, n * PAGE, PAGE), Slot("experts", n * PAGE, PAGE)) for n in parts)
    return Read(number, tuple(made), True)


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def finishes(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return not thread.is_alive()
