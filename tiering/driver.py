"""Runs the planner's reads on an asyncio loop of its own thread; completions go back as events."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

from .events import Event, Read, ReadDone, ReadFailed
from .ports import Flash, Memory


class Driver:
    """``submit`` may be called from any thread; ``post`` is called on the loop's thread with each completion.

    The planner bounds the number of reads in flight, so every read gets a thread of the pool at once. ``beside`` runs
    on the same loop, until the end.
    """

    def __init__(
        self,
        flash: Flash,
        memory: Memory,
        post: Callable[[Event], None],
        *,
        depth: int,
        beside: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> None:
        self._beside = beside
        self._flash, self._memory, self._post = flash, memory, post
        self._own: set[int] = set()  # this driver's threads
        self._pool = ThreadPoolExecutor(depth, thread_name_prefix="penstock-io", initializer=self._enlist)
        self._reads: asyncio.Queue[Read | None] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="penstock-driver", daemon=True)
        self._thread.start()

    def submit(self, read: Read) -> None:
        """Start ``read`` soon; its completion is posted, whatever happens."""
        if threading.current_thread() is self._thread:
            self._reads.put_nowait(read)
        else:
            self._loop.call_soon_threadsafe(self._reads.put_nowait, read)

    def close(self) -> None:
        """Let the reads in flight land (they write into the arena), then stop. Idempotent, from any thread.

        The garbage collector may call it from one of our own, which then only asks for the end and does not wait.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: somebody was here before
            self._loop.call_soon_threadsafe(self._reads.put_nowait, None)
        if threading.get_ident() not in self._own:
            self._thread.join()

    def _enlist(self) -> None:
        self._own.add(threading.get_ident())

    def _run(self) -> None:
        self._enlist()
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._pool.shutdown()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(self._beside()) if self._beside else None
            while (read := await self._reads.get()) is not None:
                tasks.create_task(self._perform(read))
            if beside is not None:
                beside.cancel()

    async def _perform(self, read: Read) -> None:
        event: Event
        try:
            into = [self._memory.view(part.slot.offset, part.slot.length) for part in read.parts]
            await self._loop.run_in_executor(self._pool, self._flash.read, read.parts, into)
            event = ReadDone(read.read)
        except Exception as error:  # handed to whoever waits for the blocks
            event = ReadFailed(read.read, error)
        self._post(event)
