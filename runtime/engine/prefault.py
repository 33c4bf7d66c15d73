"""Backs memory with pages before it is used: a prompt would have to wait for them."""

import threading

from ...kernels.memory.arena import Arena
from ...tiering.units import align_up

_THREADS = 4
"""Threads that ask for memory; under a hypervisor each of them mostly waits for the host."""


def start_prefault(arena: Arena, start: int, length: int) -> list[threading.Thread]:
    """Threads that back ``length`` bytes of ``arena`` from ``start`` on with memory. Nobody has to wait for them."""
    each = align_up(length // _THREADS + 1)
    spans = [(start + offset, min(each, length - offset)) for offset in range(0, length, each)]
    threads = [
        threading.Thread(target=arena.prefault, args=span, name="penstock-prefault", daemon=True) for span in spans
    ]
    for thread in threads:
        thread.start()
    return threads
