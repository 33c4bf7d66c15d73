"""Room for keys and values in pages (pure): what a request needs of memory and of flash, and who fits beside whom.

The newest pages of a request take tokens, and cannot leave memory while it runs. All others may go to flash. So what
runs at a time has to fit the memory with its newest pages alone, and what has begun has to fit the memory, or the
flash, with all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

SUMMARIES = 64
"""Pages that memory for summaries is taken for at a time."""


@dataclass(frozen=True, slots=True)
class LayerRoom:
    """One layer of the cache of one sequence. Pages have ``tokens`` tokens.

    ``newest`` pages take ``open`` bytes each, of keys and of values. Older ones take ``stored`` bytes. Pages on flash
    lie in extents of about ``extent`` bytes. With a ``window`` only its tokens are kept. Each page takes ``summary``
    bytes of memory more.
    """

    tokens: int
    open: tuple[int, int]
    stored: tuple[int, int]
    extent: int
    newest: int = 1
    window: int | None = None
    summary: int = 0

    def pages(self, tokens: int) -> int:
        """Pages of ``tokens`` tokens."""
        if self.window is not None:
            tokens = min(tokens, self.window + self.tokens)  # the first page may have tokens that left the window
        return -(-tokens // self.tokens)

    def on_flash(self, pages: int) -> int:
        """Bytes of the extents of ``pages`` pages."""
        total = 0
        for size in self.stored:
            each = max(1, self.extent // size)
            total += -(-pages // each) * each * size
        return total


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a request needs: ``newest`` of memory while it runs, ``whole`` for all pages, or ``flash``."""

    newest: int
    whole: int
    flash: int


@dataclass(frozen=True, slots=True)
class KVRoom:
    """``memory`` bytes for pages that stay, and ``flash`` bytes (None: without bound), for caches with these
    ``layers``. ``spills``: a request that pauses takes no memory."""

    memory: int
    flash: int | None
    layers: tuple[LayerRoom, ...]
    spills: bool = True

    def needs(self, tokens: int) -> Needs:
        """What ``tokens`` tokens need."""
        newest = whole = flash = 0
        for layer in self.layers:
            pages = layer.pages(tokens)
            new = min(pages, layer.newest)
            summaries = -(-pages // SUMMARIES) * SUMMARIES * layer.summary
            newest += new * sum(layer.open) + summaries
            whole += new * sum(layer.open) + (pages - new) * sum(layer.stored) + summaries
            flash += layer.on_flash(pages)
        return Needs(newest, whole, flash)

    def has_room(self, running: Iterable[Needs], paused: Iterable[Needs] = ()) -> bool:
        """Return whether these may be ``running`` while those are ``paused``."""
        run = [*running]
        all_ = [*run, *paused]
        if sum(each.newest for each in (run if self.spills else all_)) > self.memory:
            return False
        if self.flash is None or sum(each.flash for each in all_) <= self.flash:
            return True
        return sum(each.whole for each in all_) <= self.memory

    def most_tokens(self, limit: int) -> int:
        """The most tokens, up to ``limit``, of a request that fits alone."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.has_room([self.needs(middle)]) else (low, middle - 1)
        return low
