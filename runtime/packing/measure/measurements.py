"""Measure what arranging asks for, by encoding the weights themselves."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from ....tiering.progress import Progress
from ....tiering.store.bundle.manifest import Block
from ....tiering.units import BlockId
from ...checkpoints.weights import WeightReader
from ..arrange.formats import Choice
from ..arrange.planes import Lengths
from ..arrange.size_target import WAYS
from .calibration import Calibration
from .errors import relative_errors, rows_of_each


class Measurements:
    """Measure: ``lengths`` tells bytes of planes. Errors are those of ``weights``, counted by the ``shares`` of blocks
    and by the importance of inputs in ``calibration``."""

    def __init__(
        self,
        weights: WeightReader,
        lengths: Lengths,
        shares: Callable[[], Mapping[BlockId, float]],
        calibration: Calibration,
        progress: Progress,
        expect: Callable[[Sequence[Block]], None],
    ) -> None:
        """``shares`` is called when errors are asked for, ``expect`` before lengths are."""
        self.lengths, self.expect = lengths, expect
        self._weights, self._shares, self._calibration = weights, shares, calibration
        self._progress = progress

    def losses(
        self, blocks: Sequence[Block], chosen: Mapping[str, Choice], each: Callable[[Block], None]
    ) -> list[list[float]]:
        """As Measure.losses."""
        shares = self._shares()
        rows = rows_of_each(blocks, chosen)
        found = []
        self._progress.start("measuring what formats lose", sum(block.extent.length for block in blocks))
        try:
            for block, following in zip_longest(blocks, blocks[1:]):
                if following:
                    self._weights.expect(following)
                ways = [*WAYS[block.id.kind]]
                importance = self._calibration.importance
                errors = relative_errors(block, chosen, ways, self._weights, importance, rows=rows)
                found.append([error * shares[block.id] for error in errors])
                each(block)
                self._progress.advance(block.extent.length)
        finally:
            self._progress.finish()
        return found
