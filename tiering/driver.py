"""Runs the planner's reads on an asyncio loop of its own thread; completions go back as events."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine

from ..kernels.reading import may_wait
from .events import Event, Read, ReadDone, ReadFailed
from .ports import Flash, Memory


class Driver:
    """``submit`` may be called from any thread; ``post`` is called on the loop's thread with each completion.

    The planner bounds the number of reads in flight, so every read is handed to the flash at once. A read is never
    cancelled: the drive would go on writing into its slot. ``beside`` runs on the same loop, until the end.
    """

    def __init__(
        self,
        flash: Flash,
        memory: Memory,
        post: Callable[[Event], None],
        *,
        beside: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> None:
        self._beside = beside
        self._flash, self._memory, self._post = flash, memory, post
        self._reads: asyncio.Queue[Read | None] = asyncio.Queue()
        self._bug: BaseException | None = None
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

        The garbage collector may call it from this driver's thread or from one that performs reads, which then only
        asks for the end and does not wait.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed: somebody was here before
            self._loop.call_soon_threadsafe(self._reads.put_nowait, None)
        if threading.current_thread() is not self._thread and may_wait():
            self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())
        if self._bug is not None:
            raise self._bug

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(self._run_beside(self._beside)) if self._beside else None
            while (read := await self._reads.get()) is not None:
                tasks.create_task(self._perform(read))
            if beside is not None:
                beside.cancel()

    async def _perform(self, read: Read) -> None:
        event: Event
        try:
            into = [self._memory.view(part.slot.offset, part.slot.length) for part in read.parts]
            await self._flash.read(read.parts, into)
            event = ReadDone(read.read)
        except Exception as error:  # handed to whoever waits for the blocks
            event = ReadFailed(read.read, error)
        try:
            self._post(event)
        except BaseException as bug:
            self._stop(bug)

    async def _run_beside(self, beside: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await beside()
        except asyncio.CancelledError:
            raise  # the end
        except BaseException as bug:
            self._stop(bug)

    def _stop(self, bug: BaseException) -> None:
        """End with ``bug``, which is kept back until all reads have landed: raised now, it would cancel them."""
        self._bug = self._bug or bug
        self._reads.put_nowait(None)
