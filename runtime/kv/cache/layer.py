"""One layer of a paged cache: tracks of pages for each sequence, behind transformers' interface of a cache layer."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ....kernels.kv.as_is import numbers_in
from ....kernels.kv.base import KVFormat, PageShape
from ....tiering.errors import ConfigError
from ....tiering.kv.pages import BlockTable, Page, runs
from ..pages.readahead import Ahead
from ..views.paged_tensors import Expand, PagedStates
from .formats import AS_IS, suits
from .tier import KVTier

if TYPE_CHECKING:
    from ..attention.few_rows import PageSelector
    from ..pages.summaries import Summed


@dataclass(slots=True, eq=False, weakref_slot=True)
class SequencePages:
    """The pages of one sequence, and what sums them up, if anything does."""

    keys: BlockTable
    values: BlockTable
    summaries: "Summed | None" = None

    @property
    def tracks(self) -> tuple[BlockTable, BlockTable]:
        return self.keys, self.values

    def snapshot(self) -> "SequencePages":
        """The same pages, while the row itself changes."""
        keys, values = (BlockTable([*track.pages], track.first) for track in self.tracks)
        return SequencePages(keys, values)


@dataclass(slots=True)
class Visible:
    """What the queries of one forward see of a layer: tokens in pages of ``rows``, from number ``start`` on, ``paged``
    of them, and behind these ``new`` ones as they were computed (keys and values [B, H, n, D]; None: they are in the
    pages)."""

    layer: "PagedLayer"
    rows: list[SequencePages]
    start: int
    paged: int
    new: tuple[torch.Tensor, torch.Tensor] | None
    queries: int
    """Rows of the query: the last of the tokens."""

    @property
    def length(self) -> int:
        return self.paged + (0 if self.new is None else self.new[0].shape[-2])

    def gathered(self, expand: Expand | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens, [B, H, T, D]."""
        batch = [self.layer.gathered(row, self.start, self.paged) for row in self.rows]
        keys, values = (torch.stack([pair[plane] for pair in batch]) for plane in (0, 1))
        if self.new is not None:
            keys, values = torch.cat([keys, self.new[0]], -2), torch.cat([values, self.new[1]], -2)
        return (keys, values) if expand is None else expand(keys, values)


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer whose keys and values lie in pages of ``tier``. With a ``window`` only the tokens that a query can still
    see are kept.

    What a forward has added can be undone until the next one begins: until then nothing that it needs is dropped.
    ``ahead`` is told when the layer is looked at. Errors are those of the pool: BudgetTooSmall, FlashFull, ReadError.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self, tier: KVTier, ahead: "Ahead[PagedLayer]", *, window: int | None = None) -> None:
        self.tier, self._ahead = tier, ahead
        self.window = self.sliding_window = window
        self.chooser: PageSelector | None = None if window is not None else tier.chooser()
        """Which pages few rows look at; None: all."""
        self.is_initialized = False
        self.record_past = False
        self.length = 0
        self.rows: list[SequencePages] = []
        self.shapes: tuple[PageShape, PageShape]
        self._before: list[SequencePages] = []  # what the last forward has replaced
        self._leaving: dict[tuple[SequencePages, int], None] = {}  # pages that nobody will look at, with their numbers
        self._mark = 0  # tokens there were before it

    # --- what transformers asks ---------------------------------------------------------------------------------------

    @property
    def is_sliding(self) -> bool:
        return self.window is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """A copy of all keys that a next query sees, [B, H, T, D]; None before the first."""
        return self._seen().gathered()[0] if self.is_initialized else None

    @property
    def values(self) -> torch.Tensor | None:
        """As ``keys``, of values."""
        return self._seen().gathered()[1] if self.is_initialized else None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.shapes = self.tier.shapes(key_states, value_states)
        self.rows = [SequencePages(BlockTable(), BlockTable()) for _ in range(key_states.shape[0])]
        self.is_initialized = True
        if self.siblings.index(self) in self.tier.exact:
            self.look_at_all()

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``key_states`` and ``value_states`` [B, H, n, D]; all that their queries see."""
        self._commit()
        self._ahead.begin(self)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states, value_states)
        count = key_states.shape[-2]
        past = self._seen_past()
        start = self.length - past
        if count < self.shapes[0].tokens:
            rows, new = self.rows, None
            self._append(key_states, value_states)
            paged = past + count
        else:
            rows, new, paged = self.rows, (key_states, value_states), past
            if self.window is not None and not self.record_past and count >= self.window:
                self._begin_anew(key_states, value_states)
            else:
                self._append(key_states, value_states)
                rows = [row.snapshot() for row in self.rows]
        visible = Visible(self, rows, start, paged, new, count)
        return PagedStates.of(visible, 0, key_states), PagedStates.of(visible, 1, value_states)

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1 if self.window is None else self.window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        past = self._seen_past()
        return past + query_length, self.length - past

    def activate_past_recording(self) -> None:
        """Keep what leaves the window until the next ``crop``."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number, of tokens to remove; not {tokens_to_remove}")
        if not self.is_initialized:
            return
        self._commit()
        if self.window is not None and self.length >= self.window and not self.record_past and tokens_to_remove:
            raise RuntimeError("this layer keeps its window alone: call `activate_past_recording` before `crop`")
        self._cut(max(0, self.length + tokens_to_remove))
        self._trim()

    def reset(self) -> None:
        self._drop(self.rows)
        self._drop(self._before)
        self._leaving.clear()
        self.rows, self._before, self.length, self._mark, self.is_initialized = [], [], 0, 0, False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._take_rows(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take_rows([row for row in range(len(self.rows)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        rows = torch.arange(len(self.rows))[indices.cpu()]
        self._take_rows(rows.tolist())

    def offload(self) -> None:
        """Pages are where there is room for them."""

    def prefetch(self) -> None:
        """Pages are read ahead."""

    # --- what attention asks ------------------------------------------------------------------------------------------

    @property
    def siblings(self) -> "list[PagedLayer]":
        """All layers of the cache, this one too, in their order."""
        return self._ahead.layers

    def look_at_all(self) -> None:
        """Keys are made of what is cached (latents), which no summary knows: pages are not chosen by summaries here."""
        if self.chooser is None or self.chooser.drops:
            return
        self.chooser = None
        self.tier.exact.add(self.siblings.index(self))
        for row in self.rows:
            if row.summaries is not None:
                row.summaries.drop()
                row.summaries = None

    def missing(self) -> Iterator[Page]:
        """Pages that are nowhere in memory, in the order in which attention will look at them, as far as that is
        known."""
        for number, row in enumerate(self.rows):
            if self.chooser is None:
                pages: Iterable[Page] = (page for track in row.tracks for page in track.pages)
            else:
                pages = self.chooser.expected(number, row)
            yield from (page for page in pages if page.slot is None and not page.up)

    def pieces(
        self, track: BlockTable, numbers: Sequence[int], *, in_order: bool = False, aside: bool = False
    ) -> Iterator[tuple[int, list[Page]]]:
        """The pages of ``track`` with these ``numbers`` among its pages, ascending, in runs of neighbours, held while
        they are looked at; with the number of each run's first page. Those in memory come first, unless they are to
        come ``in_order``. ``aside``: in another thread than the one that uses the cache."""
        pool = self.tier.pool
        pages = [track.pages[number] for number in numbers]
        here = pool.hold(pages)
        held = set(here)
        stretches = [*stretches_of(numbers, pages, held, pool.most)]
        if not in_order:
            stretches.sort(key=lambda stretch: stretch[1][0] not in held)
        try:
            for at, run in stretches:
                if run[0] in held:
                    yield at, run
                    continue
                pool.fetch(run)
                try:
                    yield at, run
                finally:
                    pool.release(run)
                    if not aside:
                        self._ahead.go_on()
        finally:
            pool.release(here)

    def together(self, track: BlockTable, numbers: Sequence[int]) -> Iterator[tuple[int, list[Page]]]:
        """The pages of ``track`` with these ``numbers`` among its pages, in this order, as many at a time as can be
        held, in one format; with the place of the first among ``numbers``."""
        pool = self.tier.pool
        pages = [track.pages[number] for number in numbers]
        if missing := [page for page in pages if page.slot is None]:
            pool.read_ahead(missing)
        at = 0
        for _, group in groupby(pages, key=lambda page: page.format):
            some = [*group]
            each = max(1, pool.memory.ring // 4 // some[0].size)
            for start in range(0, len(some), each):
                part = some[start : start + each]
                here = pool.hold(part)
                try:
                    if len(here) < len(part):
                        held = set(here)
                        here += pool.fetch([page for page in part if page not in held])
                    yield at, part
                finally:
                    pool.release(here)
                at += len(part)
        self._ahead.go_on()

    def kept(self, row: SequencePages, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Stretches of the tokens from number ``start`` to ``end`` that were not dropped: where they begin and end."""
        tokens = self.shapes[0].tokens
        pages = row.keys.pages[start // tokens - row.keys.first : -(-end // tokens) - row.keys.first]
        for is_gone, group in groupby(pages, key=lambda page: page.is_gone):
            stretch = [*group]
            if not is_gone:
                yield max(start, stretch[0].index * tokens), min(end, (stretch[-1].index + 1) * tokens)

    def let_go(self, row: SequencePages, numbers: Iterable[int]) -> list[int]:
        """Nobody looks at the pages with these numbers in ``row`` any more; those of them that are not on their way out
        already. What was there before this forward leaves when the next one begins."""
        news = [number for number in numbers if (row, number) not in self._leaving]
        for number in news:
            if number * self.shapes[0].tokens < self._mark:
                self._leaving[row, number] = None
            else:
                self._forget(row, number)
        return news

    def copied(self, row: SequencePages, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``count`` tokens from number ``start`` on, [H, count, D]. Raises ConfigError where some
        have been dropped."""
        return self.copied_plane(row, 0, start, count), self.copied_plane(row, 1, start, count)

    def gathered(self, row: SequencePages, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``copied``, where the model computes."""
        upper = self.tier.upper
        return self.copied(row, start, count) if upper is None else upper.copied(self, row, start, count)

    def copied_plane(
        self, row: SequencePages, plane: int, start: int, count: int, *, aside: bool = False
    ) -> torch.Tensor:
        """As ``copied``, of keys (``plane`` 0) or values (1) alone; ``aside`` as in ``pieces``."""
        if [*self.kept(row, start, start + count)] != ([(start, start + count)] if count else []):
            raise ConfigError(
                "keys and values of this context were dropped, and something asked for all of them; this cache, or "
                'this model, needs [kv] attention = "exact"'
            )
        track, shape = row.tracks[plane], self.shapes[plane]
        tokens = shape.tokens
        origin = start // tokens  # number of the first page
        pages = -(-(start + count) // tokens) - origin if count else 0
        whole = torch.empty(shape.heads, pages * tokens, shape.dim, dtype=shape.dtype)
        first = origin - track.first
        for at, run in self.pieces(track, range(first, first + pages), aside=aside):
            for offset, page in enumerate(run):
                to = (at - first + offset) * tokens
                self.decode(plane, page, whole[:, to : to + tokens])
        skip = start - origin * tokens
        return whole[:, skip : skip + count].contiguous()

    def decode(self, plane: int, page: Page, out: torch.Tensor) -> None:
        """The numbers of ``page``, held, of keys (``plane`` 0) or values (1), to ``out`` [H, P, D]."""
        format: Any = page.format
        bytes_ = self.tier.pool.view(page)
        (format.decode_values if plane else format.decode_keys)(bytes_, self.shapes[plane], out)

    def shared(self, number: int) -> SequencePages:
        """The pages of sequence ``number`` as they are now, which stay until ``give_back`` whatever happens to it."""
        row = self.rows[number].snapshot()
        for track in row.tracks:
            self.tier.pool.share(track.pages)
        return row

    def give_back(self, row: SequencePages) -> None:
        """Let go of a ``shared`` row; in any thread."""
        self._drop([row])

    def extend(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add ``keys`` and ``values`` [B, H, n, D] of tokens that were computed before. For a layer without window."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._append(keys, values)
        self._commit()

    def begin_with(self, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Be as after ``length`` tokens: ``keys`` and ``values`` [B, H, n, D] are those of them that a query can still
        see. For a layer with a window that holds nothing."""
        self.lazy_initialization(keys, values)
        self.length = length - keys.shape[-2]
        self._begin_anew(keys, values)
        self._commit()

    # --- a forward, and its end ---------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take back what the last forward has added; once."""
        self._leaving.clear()
        if self._before:
            self._drop(self.rows)
            self.rows, self._before = self._before, []
            self.length = self._mark
        elif self._mark:
            self._cut(self._mark)
        else:
            self.reset()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        for shape, states in zip(self.shapes, (keys, values), strict=True):
            heads, dim = states.shape[-3], states.shape[-1]
            if (heads, dim, states.dtype) != (shape.heads, shape.dim, shape.dtype) or len(states) != len(self.rows):
                raise ConfigError(
                    f"this KV cache holds {len(self.rows)} sequences with {shape.heads} heads of {shape.dim} "
                    f"{shape.dtype}, not {len(states)} with {heads} of {dim} {states.dtype}: "
                    "it belongs to another model or batch; begin with a new one"
                )

    def _seen_past(self) -> int:
        """Tokens in pages that the next query sees."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def _seen(self) -> Visible:
        past = self._seen_past()
        return Visible(self, self.rows, self.length - past, past, None, 0)

    def _commit(self) -> None:
        """What the last forward added stays; what nobody sees any more goes."""
        self._drop(self._before)
        for row, number in self._leaving:
            self._forget(row, number)
        self._leaving.clear()
        self._before, self._mark = [], self.length
        if not self.record_past:
            self._trim()

    def _trim(self) -> None:
        if self.window is None or not self.is_initialized:
            return
        first = max(0, self.length - self.window + 1) // self.shapes[0].tokens
        for row in self.rows:
            for track in row.tracks:
                gone = max(0, min(first - track.first, len(track.pages)))
                self.tier.pool.drop(track.pages[:gone])
                del track.pages[:gone]
                track.first += gone

    def _begin_anew(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Tracks with those of the new tokens alone that a later query sees; the others stay for ``undo``."""
        assert self.window is not None
        count, tokens = keys.shape[-2], self.shapes[0].tokens
        end = self.length + count
        first = max(self.length, end - self.window + 1)
        # A page begins at a multiple of its tokens: what lies before the first token in it is never looked at.
        skip = first % tokens
        number = first // tokens
        self._before = self.rows
        self.rows = [SequencePages(BlockTable(first=number), BlockTable(first=number)) for _ in self._before]
        self.length = number * tokens
        tail = [torch.nn.functional.pad(x[..., first - end :, :], (0, 0, skip, 0)) for x in (keys, values)]
        self._append(tail[0], tail[1])

    def _append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens [B, H, n, D] to the tracks of all rows."""
        keys, values = keys.cpu(), values.cpu()
        count, tokens = keys.shape[-2], self.shapes[0].tokens
        done = 0
        while done < count:
            filled = self.length % tokens
            some = min(tokens - filled, count - done)
            for number, row in enumerate(self.rows):
                for plane, (track, states) in enumerate(zip(row.tracks, (keys, values), strict=True)):
                    page = self._open(plane, track, fresh=not filled)
                    numbers = numbers_in(self.tier.pool.view(page), self.shapes[plane])
                    numbers[:, filled : filled + some] = states[number, :, done : done + some]
            done += some
            self.length += some
            for row in self.rows:
                self._seal(row, count - done)
        if self.chooser is not None:
            for row in self.rows:
                self.chooser.on_append(self, row)

    def _open(self, plane: int, track: BlockTable, *, fresh: bool) -> Page:
        """The last page of ``track``, a new one if it is to be ``fresh``, and no other's."""
        if fresh:
            track.pages.append(self._page(plane, track, len(track.pages), AS_IS))
        elif track.pages[-1].refs > 1:
            page = self._page(plane, track, len(track.pages) - 1, AS_IS)
            self.tier.pool.view(page).copy_(self.tier.pool.view(track.pages[-1]))
            self._put(track, len(track.pages) - 1, page)
        return track.pages[-1]

    def _page(self, plane: int, track: BlockTable, at: int, format: KVFormat, score: float = 0.0) -> Page:
        shape = self.shapes[plane]
        size = format.value_bytes(shape) if plane else format.key_bytes(shape)
        return self.tier.pool.new(track, track.first + at, size, format, score=score)

    def _put(self, track: BlockTable, at: int, page: Page) -> None:
        """``page`` takes the place of the page number ``at`` of ``track``."""
        former, track.pages[at] = track.pages[at], page
        self.tier.pool.drop([former])

    def _forget(self, row: SequencePages, number: int) -> None:
        for track in row.tracks:
            self._put(track, number, Page.gone(track.number, track.first + number))

    def _seal(self, row: SequencePages, to_come: int) -> None:
        """Full pages that are not recent any more get their format, and do not change from now on; so many tokens more
        are about to be added."""
        pool, tokens, encoding = self.tier.pool, self.shapes[0].tokens, self.tier.encoding
        keys, values = row.tracks
        leaving = encoding.leaving(keys.pages, keys.first, self.length, tokens)
        for at, format in zip(leaving, encoding.formats(keys, leaving, self.length, tokens), strict=True):
            numbers = [
                numbers_in(pool.view(track.pages[at]), shape)
                for track, shape in zip(row.tracks, self.shapes, strict=True)
            ]
            if format is not AS_IS and suits(format, *numbers):
                for plane, track in enumerate(row.tracks):
                    page = self._page(plane, track, at, format, score=track.pages[at].attention_score)
                    encode = format.encode_values if plane else format.encode_keys
                    encode(numbers[plane], pool.view(page))
                    self._put(track, at, page)
            pool.seal(keys.pages[at], values.pages[at])
            if self.tier.upper is not None:
                newer = to_come // tokens * (keys.pages[at].size + values.pages[at].size)
                self.tier.upper.offer(keys.pages[at], values.pages[at], newer=newer)

    def _cut(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        pool, (whole, rest) = self.tier.pool, divmod(length, self.shapes[0].tokens)
        opened: list[tuple[BlockTable, Page]] = []
        try:  # what may fail comes first
            for row in self.rows:
                for plane, track in enumerate(row.tracks):
                    at = whole - track.first
                    if rest and 0 <= at < len(track.pages) and track.pages[at].sealed:
                        opened.append((track, self._opened(plane, track, at)))
        except BaseException:
            pool.drop([page for _, page in opened])
            raise
        for row in self.rows:
            for track in row.tracks:
                stay = whole - track.first + (rest > 0)
                pool.drop(track.pages[stay:])
                del track.pages[stay:]
            if row.summaries is not None:
                row.summaries.cut(whole)
        for track, page in opened:
            self._put(track, -1, page)
        self.length = length

    def _opened(self, plane: int, track: BlockTable, at: int) -> Page:
        """The page number ``at`` of ``track``, as one that takes tokens again: a copy, as it does not change itself."""
        pool, sealed = self.tier.pool, track.pages[at]
        if sealed.is_gone:
            raise ConfigError(
                "the tokens that this cache would end with were dropped; it can be cropped to recent ones "
                'alone. Begin a new one, or take [kv] attention = "exact"'
            )
        page = self._page(plane, track, at, AS_IS)  # not while a page is held: room for it may have to be made
        try:
            held = pool.hold([sealed]) or pool.fetch([sealed])
            try:
                self.decode(plane, sealed, numbers_in(pool.view(page), self.shapes[plane]))
            finally:
                pool.release(held)
        except BaseException:
            pool.drop([page])
            raise
        return page

    def _take_rows(self, rows: Sequence[int]) -> None:
        """The sequences with these numbers, in this order; one may be taken several times."""
        if not self.is_initialized:
            return
        self._commit()
        taken = [self.rows[row].snapshot() for row in rows]
        for number, row in zip(rows, taken, strict=True):
            summaries = self.rows[number].summaries
            row.summaries = None if summaries is None else summaries.copy()
            for track in row.tracks:
                self.tier.pool.share(track.pages)
        self._drop(self.rows)
        self.rows = taken

    def _drop(self, rows: Sequence[SequencePages]) -> None:
        for row in rows:
            if row.summaries is not None:
                row.summaries.drop()
            for track in row.tracks:
                self.tier.pool.drop(track.pages)

    def abandon(self) -> None:
        """Let go of all pages; may be called by the garbage collector."""
        for row in (*self.rows, *self._before):
            for track in row.tracks:
                self.tier.pool.abandon(track.pages)
            if row.summaries is not None:
                self.tier.pool.abandon_reserve(row.summaries.taken)


def stretches_of(
    numbers: Sequence[int], pages: Sequence[Page], held: set[Page], most: int
) -> Iterator[tuple[int, list[Page]]]:
    """``pages``, with these ``numbers``, in stretches of neighbours in one format, each with the number of its first
    page: all of them ``held``, or none, and then one read of at most ``most`` bytes."""

    def kind(at: int) -> tuple[bool, Hashable, int]:
        return pages[at] in held, pages[at].format, numbers[at] - at  # the last is the same for neighbours

    for (here, *_), group in groupby(range(len(pages)), key=kind):
        places = [*group]
        some = [pages[at] for at in places]
        number = numbers[places[0]]
        for run in [some] if here else runs(some, most):
            yield number, run
            number += len(run)
