"""The pages of one sequence in one layer: a block table of keys, one of values, summaries of the keys."""

from dataclasses import dataclass

from ....tiering.kv.pages import BlockTable
from ..pages.summaries import PageSummaries


@dataclass(slots=True, eq=False, weakref_slot=True)
class SequencePages:
    """The pages of one sequence, and summaries of its keys where a selector made some."""

    keys: BlockTable
    values: BlockTable
    summaries: PageSummaries | None = None

    @property
    def tables(self) -> tuple[BlockTable, BlockTable]:
        """The block table of keys, and that of values."""
        return self.keys, self.values

    def snapshot(self) -> "SequencePages":
        """The same pages in block tables of their own, which stay as they are when this sequence changes."""
        keys, values = (BlockTable([*table.pages], table.first) for table in self.tables)
        return SequencePages(keys, values)
