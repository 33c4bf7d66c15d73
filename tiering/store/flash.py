"""The bundle as the planner's flash: parts name blocks, which are read asynchronously and checked as they arrive."""

import asyncio
from collections.abc import Sequence

from ...kernels.reading import Reader
from ..events import Part
from .manifest import Block
from .reader import Bundle, in_passing


class BundleFlash:
    """As Flash. The checksum is taken on the reader's thread that saw the bytes arrive; the loop only waits."""

    def __init__(self, bundle: Bundle, reader: Reader) -> None:
        """Closes neither of them."""
        self._bundle, self._reader = bundle, reader
        self._blocks = {block.id: block for block in bundle.manifest.blocks}

    async def read(self, parts: Sequence[Part], into: Sequence[memoryview]) -> None:
        """As Flash.read. An I/O error gets a second chance: one in passing should not end a long run."""
        blocks = [self._blocks[part.block] for part in parts]
        problem = await self._land(blocks, into)
        if problem is not None and in_passing(problem):
            problem = await self._land(blocks, into)
        if problem is not None:
            raise self._bundle.explain(problem, blocks) from problem

    def _land(self, blocks: Sequence[Block], into: Sequence[memoryview]) -> "asyncio.Future[Exception | None]":
        """Start to read ``blocks``; the outcome, when they have landed and are checked."""
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[Exception | None] = loop.create_future()

        def then(problem: Exception | None) -> None:
            if problem is None:
                problem = self._bundle.fault(blocks, into)
            loop.call_soon_threadsafe(landed.set_result, problem)

        self._reader.submit(*self._bundle.locate(blocks, into), then)
        return landed
