"""Ctrl-C while something is waited for."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def until_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Do ``work``; False if Ctrl-C has ended it."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    stopped = []

    def stop() -> None:
        stopped.append(True)
        task.cancel()

    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        return False
    finally:
        signal.signal(signal.SIGINT, before)
    return True
