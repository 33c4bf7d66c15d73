"""The bundle as the planner's flash: parts name blocks, which are read by a reader and checked as they arrive."""

from collections.abc import Callable, Sequence

from ....kernels.io.reading import Reader
from ...events import Part
from .data_files import in_passing
from .manifest import Block
from .reader import Bundle


class BundleFlash:
    """A BlockSource. The checksum is taken on the reader's thread that saw the bytes arrive."""

    def __init__(self, bundle: Bundle, reader: Reader) -> None:
        """Closes neither of them."""
        self._bundle, self._reader = bundle, reader
        self._blocks = bundle.manifest.blocks
        self._number = {block.id: number for number, block in enumerate(self._blocks)}

    def read(
        self, parts: Sequence[Part], into: Sequence[memoryview], landed: Callable[[Exception | None], None]
    ) -> None:
        """As BlockSource.read. An I/O error gets a second chance: one in passing should not end a long run.

        The extent of a part may take in the blocks that lie behind its own."""
        blocks: list[Block] = []
        views: list[memoryview] = []
        for part, view in zip(parts, into, strict=True):
            number = self._number[part.block]
            while view:
                block = self._blocks[number]
                blocks.append(block)
                views.append(view[: block.extent.length])
                view, number = view[block.extent.length :], number + 1
        self._start(blocks, views, landed, again=True)

    def _start(
        self,
        blocks: Sequence[Block],
        into: Sequence[memoryview],
        landed: Callable[[Exception | None], None],
        *,
        again: bool,
    ) -> None:
        def then(problem: Exception | None) -> None:
            try:
                if problem is None:
                    problem = self._bundle.fault(blocks, into)
                elif again and in_passing(problem):
                    self._start(blocks, into, landed, again=False)
                    return
                else:
                    problem = self._bundle.explain(problem, blocks)
            except Exception as error:  # the file or the reader was closed meanwhile; whatever it is, somebody waits
                problem = error
            landed(problem)

        self._reader.submit(*self._bundle.locate(blocks, into), then)
