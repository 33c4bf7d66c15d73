"""The bundle as the planner's flash: parts name blocks, which are read asynchronously and checked as they arrive."""

from collections.abc import Callable, Sequence

from ...kernels.reading import Reader
from ..events import Part
from .manifest import Block
from .reader import Bundle, in_passing


class BundleFlash:
    """As Flash. The checksum is taken on the reader's thread that saw the bytes arrive."""

    def __init__(self, bundle: Bundle, reader: Reader) -> None:
        """Closes neither of them."""
        self._bundle, self._reader = bundle, reader
        self._blocks = {block.id: block for block in bundle.manifest.blocks}

    def read(
        self, parts: Sequence[Part], into: Sequence[memoryview], landed: Callable[[Exception | None], None]
    ) -> None:
        """As Flash.read. An I/O error gets a second chance: one in passing should not end a long run."""
        self._start([self._blocks[part.block] for part in parts], into, landed, again=True)

    def _start(
        self,
        blocks: Sequence[Block],
        into: Sequence[memoryview],
        landed: Callable[[Exception | None], None],
        *,
        again: bool,
    ) -> None:
        def then(problem: Exception | None) -> None:
            if problem is None:
                problem = self._bundle.fault(blocks, into)
            elif again and in_passing(problem):
                try:
                    self._start(blocks, into, landed, again=False)
                    return
                except ValueError as closed:
                    problem = closed
            landed(problem and self._bundle.explain(problem, blocks))

        self._reader.submit(*self._bundle.locate(blocks, into), then)
