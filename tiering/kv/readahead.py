"""Reading ahead (pure): pages are asked for in the order in which the next layers will look at them."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from .pages import Page

_AT_A_TIME = 32
"""Pages that are asked for at a time; more are asked for when these are on their way."""


class PageOwner(Protocol):
    """A layer whose pages are read ahead."""

    def missing(self) -> Iterable[Page]:
        """Pages that are not in memory, in the order in which they will be looked at."""


class AheadPort(Protocol):
    """Where reads ahead are asked for: the pool of pages, or a simulated one."""

    @property
    def given_up(self) -> int:
        """Pages that were read ahead, and left memory before anybody looked at them."""

    def read_ahead(self, pages: Sequence[Page]) -> int:
        """Start to read those of ``pages`` that are not in memory, in their order, as far as there is room now; how
        many of ``pages`` need no further asking."""


L = TypeVar("L", bound=PageOwner)


class Ahead(Generic[L]):
    """Of one cache: asks for pages in the order in which its ``layers`` will look at them, around and around.

    It knows nothing of the cache, so that layers do not keep that alive.
    """

    def __init__(self, pool: AheadPort) -> None:
        self._pool = pool
        self.layers: list[L] = []
        self.touched: dict[L, None] = {}
        """Layers that have been looked at since somebody cleared this."""
        self._number: dict[L, int] = {}
        self._queue: deque[Page] = deque()
        self._given_up = 0
        self._queued: deque[int] = deque()  # layers whose pages are in the queue, or have been

    def add(self, layer: L) -> None:
        """``layer`` comes after those that there are."""
        self._number[layer] = len(self.layers)
        self.layers.append(layer)

    def begin(self, layer: L) -> None:
        """``layer`` will look at its pages now."""
        self.touched[layer] = None
        number = self._number[layer]
        if number in self._queued and self._given_up == self._pool.given_up:
            while self._queued[0] != number:
                self._queued.popleft()
        else:  # what is on its way is not what will be asked for next
            self._queue.clear()
            self._queued.clear()
            self._given_up = self._pool.given_up
            self._add(number)
        self.go_on()

    def go_on(self) -> None:
        """Ask for more, if there may be room."""
        while True:
            if not self._queue:
                following = (self._queued[-1] + 1) % len(self.layers)
                if following in self._queued:
                    return
                self._add(following)
                continue
            some = [self._queue[at] for at in range(min(_AT_A_TIME, len(self._queue)))]
            done = self._pool.read_ahead(some)
            for _ in range(done):
                self._queue.popleft()
            if done < len(some):
                return

    def _add(self, number: int) -> None:
        self._queued.append(number)
        self._queue.extend(self.layers[number].missing())
