"""Attention of a simulated stream to its context: what it does with pages, in the order of a real one (pure).

Follows runtime/kv/cache/layer.py, runtime/kv/views/page_access.py and page_attention.py, where all pages are looked at:
in every layer the keys, then the values; first the pages in memory, then the others as they are read.
"""

from collections.abc import Callable, Generator, Iterator, Sequence

from ..events import Refuse
from ..kv.events import Drop, Seal
from ..kv.pages import BlockTable, Page, runs
from ..kv.readahead import Ahead
from .kv import Context, KVLayer
from .kv_pool import SimulatedPool

Looks = Generator[float | None, None, bool]
"""Yields seconds to compute, or None to wait for an answer of the pool; returns whether all went well."""


class StreamLayer:
    """Pages of one layer of one stream."""

    def __init__(self, layer: KVLayer, length: int, first: int) -> None:
        self.layer, self.length = layer, length
        self.tables = BlockTable(first=first), BlockTable(first=first)
        self.sizes = layer.keys, layer.values

    def missing(self) -> Iterator[Page]:
        """Pages that are nowhere in memory, in the order in which they are looked at."""
        return (page for table in self.tables for page in table.pages if page.slot is None)


class Attention:
    """The context of one stream. ``seconds`` says how long bytes of KV take to be looked at."""

    def __init__(self, context: Context, pool: SimulatedPool, seconds: Callable[[int], float]) -> None:
        self._pool, self._seconds = pool, seconds
        self._ahead: Ahead[StreamLayer] = Ahead(pool)
        for each in context.layers:
            self._ahead.add(self._filled(context, each))
        self.ticket = -1
        """Of the latest request."""

    def look(self, number: int) -> Looks:
        """One more token in the layer with KV of this ``number``, which looks at all that it sees."""
        layer = self._ahead.layers[number]
        self._ahead.begin(layer)
        if not (yield from self._append(layer)):
            return False
        for table in layer.tables:
            if not (yield from self._look_at(table)):
                return False
        return True

    def _filled(self, context: Context, layer: KVLayer) -> StreamLayer:
        """The layer with all tokens of the context."""
        first, full = layer.first_page(context.length), context.length // layer.tokens
        made = StreamLayer(layer, context.length, first)
        merged = context.merged(layer, self._pool.planner.most)
        for number in range(first, full, merged):
            pages = min(merged, full - number)
            self._open(made, number, pages)
            self._pool.post(Seal([table.pages[-1] for table in made.tables]))
        if context.length % layer.tokens:
            self._open(made, full, 1)
        return made

    def _open(self, layer: StreamLayer, number: int, pages: int) -> None:
        """``pages`` pages, side by side, as one; at once, as the context is made before the time begins."""
        for table, size in zip(layer.tables, layer.sizes, strict=True):
            page = Page(size * pages, None, table.number, number)
            answer = self._pool.answers.pop(self._pool.open(page))
            if isinstance(answer, Refuse):
                raise answer.error
            table.pages.append(page)

    def _append(self, layer: StreamLayer) -> Looks:
        tokens = layer.layer.tokens
        if layer.length % tokens == 0:
            for table, size in zip(layer.tables, layer.sizes, strict=True):
                page = Page(size, None, table.number, layer.length // tokens)
                if not (yield from self._answered(self._pool.open(page))):
                    return False
                table.pages.append(page)
        layer.length += 1
        if layer.length % tokens == 0:
            self._pool.post(Seal([table.pages[-1] for table in layer.tables]))
        if (gone := layer.layer.first_page(layer.length) - layer.tables[0].first) > 0:
            for table in layer.tables:
                self._pool.post(Drop(table.pages[:gone]))
                del table.pages[:gone]
                table.first += gone
        return True

    def _look_at(self, table: BlockTable) -> Looks:
        here = self._pool.hold(table.pages)
        held = set(here)
        yield self._seconds(_size(here))
        well = True
        for run in runs([page for page in table.pages if page not in held], self._pool.planner.most):
            well = yield from self._answered(self._pool.fetch(run))
            if not well:
                break
            yield self._seconds(_size(run))
            self._pool.let_go(run)
            self._ahead.go_on()
        self._pool.let_go(here)
        return well

    def _answered(self, ticket: int) -> Looks:
        self.ticket = ticket
        while ticket not in self._pool.answers:
            yield None
        return not isinstance(self._pool.answers.pop(ticket), Refuse)


def _size(pages: Sequence[Page]) -> int:
    return sum(page.size for page in pages)
