"""Changes the pages of one layer: appends tokens, seals and encodes full pages, cuts, shares and drops sequences."""

from collections.abc import Iterable, Sequence

import torch

from ....kernels.kv.as_is import view_elements
from ....kernels.kv.base import KVFormat
from ....tiering.errors import ConfigError
from ....tiering.kv.pages import BlockTable, Page
from ..views.page_access import PageAccess
from ..views.sequence import SequencePages
from .formats import AS_IS, Encoding, can_encode


class PageWriter:
    """The ``sequences`` of one layer, of ``length`` tokens each. Full pages that are not recent any more get the format
    that ``encoding`` says, and do not change from then on.

    Methods that need room or read raise what the pool raises: BudgetTooSmall, FlashFull, ReadError, Closed.
    """

    def __init__(self, access: PageAccess, encoding: Encoding) -> None:
        self._access, self._pool, self._encoding = access, access.pool, encoding
        self.sequences: list[SequencePages] = []
        self.length = 0
        self._parked: set[Page] = set()  # pages that were sealed before they were full

    def begin(self, count: int, *, page: int = 0) -> None:
        """Have ``count`` sequences without tokens, which begin with the page number ``page``. Those that there were are
        the caller's to drop."""
        self.sequences = [SequencePages(BlockTable(first=page), BlockTable(first=page)) for _ in range(count)]
        self.length = page * self._access.tokens if page else 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens [B, H, n, D] to all sequences."""
        keys, values = keys.cpu(), values.cpu()
        count, tokens = keys.shape[-2], self._access.tokens
        done = 0
        while done < count:
            filled = self.length % tokens
            some = min(tokens - filled, count - done)
            for number, sequence in enumerate(self.sequences):
                for side, (table, states) in enumerate(zip(sequence.tables, (keys, values), strict=True)):
                    page = self._open_last(side, table, fresh=not filled)
                    numbers = view_elements(self._pool.view(page), self._access.shapes[side])
                    numbers[:, filled : filled + some] = states[number, :, done : done + some]
            done += some
            self.length += some
            for sequence in self.sequences:
                self._seal(sequence, count - done)

    def park(self) -> None:
        """Let all pages leave memory, the newest too, until ``wake``."""
        for sequence in self.sequences:
            for table in sequence.tables:
                news = [page for page in table.pages if not page.sealed and not page.is_gone]
                self._pool.seal(*news)
                self._parked.update(news)

    def wake(self) -> None:
        """Have pages in the place of those that ``park`` has sealed that take tokens."""
        if not self._parked:
            return
        self._reopen(
            (side, table, at)
            for sequence in self.sequences
            for side, table in enumerate(sequence.tables)
            for at, page in enumerate(table.pages)
            if page in self._parked
        )
        self._parked.clear()

    def _reopen(self, places: Iterable[tuple[int, BlockTable, int]]) -> None:
        """Have copies that take tokens in the place of the sealed pages at ``places``. If that fails all is as it
        was."""
        opened: list[tuple[BlockTable, int, Page]] = []
        try:
            for side, table, at in places:
                opened.append((table, at, self._open_copy(side, table, at)))
        except BaseException:
            self._pool.drop([page for *_, page in opened])
            raise
        for table, at, page in opened:
            self._replace(table, at, page)

    def cut(self, length: int) -> None:
        """Keep the first ``length`` tokens. Raises ConfigError too, where the page that they end in was dropped;
        nothing is changed then."""
        pool, (whole, rest) = self._pool, divmod(length, self._access.tokens)
        self._reopen(  # what may fail comes first
            (side, table, whole - table.first)
            for sequence in self.sequences
            for side, table in enumerate(sequence.tables)
            if rest and 0 <= whole - table.first < len(table.pages) and table.pages[whole - table.first].sealed
        )
        for sequence in self.sequences:
            for table in sequence.tables:
                stay = whole - table.first + (rest > 0)
                pool.drop(table.pages[stay:])
                del table.pages[stay:]
            if sequence.summaries is not None:
                sequence.summaries.cut(whole)
        self.length = length

    def trim(self, first: int) -> None:
        """Drop the pages before number ``first``: no query sees them."""
        for sequence in self.sequences:
            for table in sequence.tables:
                gone = max(0, min(first - table.first, len(table.pages)))
                self._pool.drop(table.pages[:gone])
                del table.pages[:gone]
                table.first += gone

    def take(self, numbers: Sequence[int]) -> None:
        """Have the sequences with these numbers, in this order; one may be taken several times."""
        taken = self._share(numbers)
        self.drop(self.sequences)
        self.sequences = taken

    def copy(self, other: "PageWriter") -> None:
        """Have the sequences of ``other``. For a writer that has none."""
        self.sequences, self.length = other._share(range(len(other.sequences))), other.length
        self._parked = {*other._parked}

    def _share(self, numbers: Sequence[int]) -> list[SequencePages]:
        """The sequences with these numbers, with summaries of their own."""
        taken = [self.share(number) for number in numbers]
        for number, sequence in zip(numbers, taken, strict=True):
            summaries = self.sequences[number].summaries
            sequence.summaries = None if summaries is None else summaries.copy()
        return taken

    def share(self, number: int) -> SequencePages:
        """The pages of sequence ``number`` as they are now. They stay until ``drop``, whatever happens to it."""
        sequence = self.sequences[number].snapshot()
        for table in sequence.tables:
            self._pool.share(table.pages)
        return sequence

    def drop(self, sequences: Sequence[SequencePages]) -> None:
        """Let go of all pages and summaries of ``sequences``; in any thread."""
        for sequence in sequences:
            if sequence.summaries is not None:
                sequence.summaries.drop()
            for table in sequence.tables:
                self._pool.drop(table.pages)

    def drop_page(self, sequence: SequencePages, number: int) -> None:
        """Drop the page ``number`` of ``sequence``, for good; a mark stays in its place."""
        for table in sequence.tables:
            self._replace(table, number, Page.gone(table.number, table.first + number))

    def abandon(self, sequences: Sequence[SequencePages]) -> None:
        """As ``drop``, soon; may be called by the garbage collector."""
        for sequence in sequences:
            for table in sequence.tables:
                self._pool.abandon(table.pages)
            if sequence.summaries is not None:
                self._pool.abandon_reserve(sequence.summaries.taken)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _open_last(self, side: int, table: BlockTable, *, fresh: bool) -> Page:
        """The last page of ``table``: a new one if it is to be ``fresh``, and one that no other sequence has."""
        if fresh:
            table.pages.append(self._new_page(side, table, len(table.pages), AS_IS))
        elif table.pages[-1].sealed:  # by a copy of this cache that was parked: it may have left memory
            self._reopen([(side, table, len(table.pages) - 1)])
        elif table.pages[-1].refs > 1:
            page = self._new_page(side, table, len(table.pages) - 1, AS_IS)
            self._pool.view(page).copy_(self._pool.view(table.pages[-1]))
            self._replace(table, len(table.pages) - 1, page)
        return table.pages[-1]

    def _open_copy(self, side: int, table: BlockTable, at: int) -> Page:
        """A copy of the page number ``at`` of ``table`` that takes tokens again: a sealed page does not change."""
        pool, sealed = self._pool, table.pages[at]
        if sealed.is_gone:
            raise ConfigError(
                "the tokens that this cache would end with were dropped; it can be cropped to recent ones "
                'alone. Begin a new one, or take [kv] attention = "exact"'
            )
        page = self._new_page(side, table, at, AS_IS, sealed.attention_score)  # nobody holds a page while room is made
        try:
            held = pool.hold([sealed]) or pool.fetch([sealed])
            try:
                self._access.decode(side, sealed, view_elements(pool.view(page), self._access.shapes[side]))
            finally:
                pool.release(held)
        except BaseException:
            pool.drop([page])
            raise
        return page

    def _new_page(self, side: int, table: BlockTable, at: int, format: KVFormat, score: float = 0.0) -> Page:
        shape = self._access.shapes[side]
        size = format.value_bytes(shape) if side else format.key_bytes(shape)
        return self._pool.new(table, table.first + at, size, format, score=score)

    def _replace(self, table: BlockTable, at: int, page: Page) -> None:
        """``page`` takes the place of the page number ``at`` of ``table``."""
        former, table.pages[at] = table.pages[at], page
        self._pool.drop([former])

    def _seal(self, sequence: SequencePages, to_come: int) -> None:
        """Encode and seal the full pages of ``sequence`` that are not recent any more. ``to_come`` more tokens are
        about to be added."""
        pool, tokens, shapes = self._pool, self._access.tokens, self._access.shapes
        keys, values = sequence.tables
        leaving = self._encoding.find_leaving(keys.pages, keys.first, self.length, tokens)
        for at, format in zip(leaving, self._encoding.choose_formats(keys, leaving, self.length, tokens), strict=True):
            numbers = [
                view_elements(pool.view(table.pages[at]), shape)
                for table, shape in zip(sequence.tables, shapes, strict=True)
            ]
            if format is not AS_IS and can_encode(format, *numbers):
                for side, table in enumerate(sequence.tables):
                    page = self._new_page(side, table, at, format, score=table.pages[at].attention_score)
                    encode = format.encode_values if side else format.encode_keys
                    encode(numbers[side], pool.view(page))
                    self._replace(table, at, page)
            pool.seal(keys.pages[at], values.pages[at])
            if (device_pages := self._access.device_pages) is not None:
                newer = to_come // tokens * (keys.pages[at].size + values.pages[at].size)
                device_pages.offer(keys.pages[at], values.pages[at], newer=newer)
