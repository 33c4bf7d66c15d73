"""One layer of a paged cache, behind transformers' interface of a cache layer."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ....kernels.kv.base import PageShape
from ....tiering.errors import ConfigError
from ....tiering.kv.pages import Page
from ....tiering.kv.readahead import Ahead
from ..views.paged_tensors import GatheredTensor, PagedTensor
from ..views.selector import PageSelector
from ..views.sequence import SequencePages
from ..views.visible import Visible
from .page_writer import PageWriter
from .tier import KVTier

_IN_PAGES = (
    "keys and values of this KV cache lie in pages and cannot be replaced; add tokens with `update`, or take "
    '[kv] host = "auto", which keeps caches of transformers\' own kind'
)


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer whose keys and values lie in pages of ``tier``. With a ``window`` only the tokens that a query can still
    see are kept.

    What a forward has added can be undone until the next one begins: until then nothing that it needs is dropped.
    ``ahead`` is told when the layer begins to read. Errors are those of the pool: BudgetTooSmall, FlashFull, ReadError.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self, tier: KVTier, ahead: "Ahead[PagedLayer]", *, window: int | None = None) -> None:
        self.tier, self._ahead = tier, ahead
        self.window = self.sliding_window = window
        self.access = tier.new_access(ahead.go_on)
        self._writer = PageWriter(self.access, tier.encoding)
        self.selector: PageSelector | None = None if window is not None else tier.new_selector()
        """Which pages the attention of few queries reads; None: all."""
        self.is_initialized = False
        self.record_past = False
        self._before: list[SequencePages] = []  # the sequences that the last forward has replaced
        self._leaving: dict[tuple[SequencePages, int], None] = {}  # pages to drop with the next forward
        self._mark = 0  # tokens there were before the last forward

    # --- transformers' interface --------------------------------------------------------------------------------------

    @property
    def is_sliding(self) -> bool:
        """Whether the layer has a window."""
        return self.window is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """A copy of all keys that a next query sees, [B, H, T, D], which is not changed in place; None before the
        first."""
        return self.gather(0).as_subclass(GatheredTensor) if self.is_initialized else None

    @keys.setter
    def keys(self, states: torch.Tensor) -> None:
        raise ConfigError(_IN_PAGES)

    @property
    def values(self) -> torch.Tensor | None:
        """As ``keys``, of values."""
        return self.gather(1).as_subclass(GatheredTensor) if self.is_initialized else None

    @values.setter
    def values(self, states: torch.Tensor) -> None:
        raise ConfigError(_IN_PAGES)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with empty sequences, as many as ``key_states`` and ``value_states`` [B, H, n, D] have, and with pages
        of their heads, dimensions and dtype."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.access.shapes = self.tier.choose_shapes(key_states, value_states)
        self._writer.begin(key_states.shape[0])
        self.is_initialized = True
        if self.siblings.index(self) in self.tier.exact:
            self.read_all_pages()

    @property
    def batch_size(self) -> int:
        """Sequences; -1 where there are none yet."""
        return len(self.sequences) or -1

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``key_states`` and ``value_states`` [B, H, n, D]. Returns all keys and values that their queries see, as
        PagedTensor [B, H, T, D]. Raises ConfigError for tensors of another model or batch."""
        self._commit()
        self._ahead.begin(self)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states, value_states)
        count = key_states.shape[-2]
        past = self._visible_past()
        start = self.length - past
        if count < self.access.tokens:
            sequences, new = self.sequences, None
            self._append(key_states, value_states)
            paged = past + count
        else:
            sequences, new, paged = self.sequences, (key_states, value_states), past
            if self.window is not None and not self.record_past and count >= self.window:
                self._begin_anew(key_states, value_states)
            else:
                self._append(key_states, value_states)
                sequences = [sequence.snapshot() for sequence in self.sequences]
        visible = Visible(self, sequences, start, paged, new)
        return PagedTensor.of(visible, 0, key_states), PagedTensor.of(visible, 1, value_states)

    def get_seq_length(self) -> int:
        """Tokens of each sequence, those that left the window too."""
        return self.length

    def get_max_length(self) -> int:
        """The window; -1 without one."""
        return -1 if self.window is None else self.window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that ``query_length`` next queries see, their own too, and the number of the first of them."""
        past = self._visible_past()
        return past + query_length, self.length - past

    def activate_past_recording(self) -> None:
        """Keep what leaves the window until the next ``crop``."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens. Raises ValueError for a positive number, RuntimeError where a
        window has lost what would be seen again, ConfigError where a selector has dropped it."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number, of tokens to remove; not {tokens_to_remove}")
        if not self.is_initialized:
            return
        self._commit()
        if self.window is not None and self.length >= self.window and not self.record_past and tokens_to_remove:
            raise RuntimeError("this layer keeps its window alone: call `activate_past_recording` before `crop`")
        self._writer.cut(max(0, self.length + tokens_to_remove))
        self._trim()

    def reset(self) -> None:
        """Forget all tokens, and the batch."""
        self._writer.drop(self.sequences)
        self._writer.drop(self._before)
        self._writer.begin(0)
        self._leaving.clear()
        self._before, self._mark, self.is_initialized = [], 0, False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Have the sequences with the numbers ``beam_idx`` [B]."""
        self._take(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have each sequence ``repeats`` times."""
        self._take([number for number in range(len(self.sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Have the sequences that ``indices`` select, as they index a tensor [B]."""
        numbers = torch.arange(len(self.sequences))[indices.cpu()]
        self._take(numbers.tolist())

    def offload(self) -> None:
        """Do nothing: pages are where there is room for them."""

    def prefetch(self) -> None:
        """Do nothing: pages are read ahead."""

    # --- for attention and selectors ----------------------------------------------------------------------------------

    @property
    def sequences(self) -> list[SequencePages]:
        """The pages of each sequence of the batch."""
        return self._writer.sequences

    @property
    def length(self) -> int:
        """Tokens of each sequence, those that left the window too."""
        return self._writer.length

    @property
    def shapes(self) -> tuple[PageShape, PageShape]:
        """Of a page of keys, and of a page of values. Raises AttributeError before the first tokens."""
        return self.access.shapes

    @property
    def siblings(self) -> "list[PagedLayer]":
        """All layers of the cache, this one too, in their order."""
        return self._ahead.layers

    @property
    def staging(self) -> int:
        """As in KVTier."""
        return self.tier.staging

    @property
    def counts_attention(self) -> bool:
        """Whether pages need an attention score, for their format."""
        return self.tier.encoding.counts_attention

    def read_all_pages(self) -> None:
        """Select by summaries no more: keys are made of what is cached (latents), of which summaries say nothing."""
        if self.selector is None or self.selector.drops:
            return
        self.selector = None
        self.tier.exact.add(self.siblings.index(self))
        for sequence in self.sequences:
            if sequence.summaries is not None:
                sequence.summaries.drop()
                sequence.summaries = None

    def drop_pages(self, sequence: SequencePages, numbers: Iterable[int]) -> list[int]:
        """Drop the pages with these numbers from ``sequence``, for good; the numbers of those that were not on their
        way out already. Pages that were there before this forward leave when the next one begins."""
        news = [number for number in numbers if (sequence, number) not in self._leaving]
        for number in news:
            if number * self.access.tokens < self._mark:
                self._leaving[sequence, number] = None
            else:
                self._writer.drop_page(sequence, number)
        return news

    def missing(self) -> Iterator[Page]:
        """Pages that are neither in memory nor on the device, in the order in which attention will read them, as far as
        that is known."""
        for number, sequence in enumerate(self.sequences):
            if self.selector is None:
                pages: Iterable[Page] = (page for table in sequence.tables for page in table.pages)
            else:
                pages = self.selector.expect(number, sequence)
            yield from (page for page in pages if page.slot is None and not page.up)

    def gather(self, side: int) -> torch.Tensor:
        """A copy of the keys (``side`` 0) or values (1) that a next query sees, [B, H, T, D]. There must be tokens."""
        return self._visible().gather()[side]

    # --- for stored prompts -------------------------------------------------------------------------------------------

    def share(self, number: int, tokens: int) -> SequencePages:
        """The pages of the first ``tokens`` of sequence ``number`` as they are now. They stay until ``give_back``,
        whatever happens to it."""
        return self._writer.share(number, tokens)

    def give_back(self, sequence: SequencePages) -> None:
        """Let go of a shared ``sequence``; in any thread."""
        self._writer.drop([sequence])

    def park(self) -> None:
        """Between two calls of ``update``: let all pages leave memory, the newest too, until more tokens come. A
        selector keeps summaries of full pages alone; with one nothing is done."""
        if self.selector is None:
            self._writer.park()

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
        self._begin_anew(keys, values, first=length - keys.shape[-2])
        self._commit()

    def copy(self, other: "PagedLayer") -> None:
        """Be as ``other``, a layer of the same tier, is between two forwards. Both have its pages, until they change
        them. Raises ConfigError where attention is approximate, which keeps more than pages."""
        if other.selector is not None:
            raise ConfigError('a KV cache can be copied with [kv] attention = "exact" alone; compute the context again')
        self.selector, self.record_past = None, other.record_past
        if other.is_initialized:
            self.dtype, self.device, self.access.shapes = other.dtype, other.device, other.shapes
            self._writer.copy(other._writer)
            self._mark, self.is_initialized = other.length, True

    # --- a forward, and its end ---------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take back what the last forward has added; once."""
        self._leaving.clear()
        if self._before:
            self._writer.drop(self.sequences)
            self._writer.sequences, self._before = self._before, []
            self._writer.length = self._mark
        elif self._mark:
            self._writer.cut(self._mark)
        else:
            self.reset()

    def abandon(self) -> None:
        """Let go of all pages; may be called by the garbage collector."""
        self._writer.abandon([*self.sequences, *self._before])

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        for shape, states in zip(self.shapes, (keys, values), strict=True):
            heads, dim = states.shape[-3], states.shape[-1]
            own = (shape.heads, shape.dim, shape.dtype)
            if (heads, dim, states.dtype) != own or len(states) != len(self.sequences):
                raise ConfigError(
                    f"this KV cache holds {len(self.sequences)} sequences with {shape.heads} heads of {shape.dim} "
                    f"{shape.dtype}, not {len(states)} with {heads} of {dim} {states.dtype}: "
                    "it belongs to another model or batch; begin with a new one"
                )

    def _visible_past(self) -> int:
        """Tokens in pages that the next query sees."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def _visible(self) -> Visible:
        past = self._visible_past()
        return Visible(self, self.sequences, self.length - past, past, None)

    def _commit(self) -> None:
        """Keep what the last forward added, for good; drop what no query sees any more. Tokens may come next."""
        self._writer.wake()
        self._writer.drop(self._before)
        for sequence, number in self._leaving:
            self._writer.drop_page(sequence, number)
        self._leaving.clear()
        self._before, self._mark = [], self.length
        if not self.record_past:
            self._trim()

    def _trim(self) -> None:
        if self.window is not None and self.is_initialized:
            self._writer.trim(max(0, self.length - self.window + 1) // self.access.tokens)

    def _append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add tokens [B, H, n, D] to all sequences."""
        self._writer.append(keys, values)
        if self.selector is not None:
            for sequence in self.sequences:
                self.selector.on_append(self, sequence)

    def _begin_anew(self, keys: torch.Tensor, values: torch.Tensor, *, first: int | None = None) -> None:
        """Sequences with those of the new tokens alone that a later query sees; the others stay for ``undo``. The first
        new token has the number ``first``; None: it comes behind those that there are."""
        assert self.window is not None
        count, tokens = keys.shape[-2], self.access.tokens
        begin = self.length if first is None else first
        end = begin + count
        seen = max(begin, end - self.window + 1)
        # A page begins at a multiple of its tokens: anything before the first token in it is never read.
        skip = seen % tokens
        self._before = self.sequences
        self._writer.begin(len(self._before), page=seen // tokens)
        tail = [torch.nn.functional.pad(x[..., seen - end :, :], (0, 0, skip, 0)) for x in (keys, values)]
        self._append(tail[0], tail[1])

    def _take(self, numbers: Sequence[int]) -> None:
        """Have the sequences with these numbers, in this order; one may be taken several times."""
        if self.is_initialized:
            self._commit()
            self._writer.take(numbers)
