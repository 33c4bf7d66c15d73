"""What happens to the KV planner (events) and what it wants done about it (actions) (pure).

Pages are named by the ``Page`` itself: the planner keeps its books in it, so that who computes on a page finds its slot
without a look-up. A request has a ``ticket``, a number of its own, under which it is answered once: by ``Wake`` or
``Refuse``. ``Cancel``, ``Refuse`` and ``Discard`` are those of the planner of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PenstockError
from ..events import Cancel, Discard, Refuse
from .device_pages import Pair
from .pages import Page

Pages = Sequence[Page]

# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """A new ``page`` wants a slot, for tokens that are about to be added. Waits for room."""

    ticket: int
    page: Page


@dataclass(frozen=True, slots=True)
class HoldPages:
    """Somebody computes on ``pages`` and wants those that are in memory. Answered at once with these, held."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class FetchPages:
    """Somebody computes on ``pages``, neighbours on flash, and wants them all, held. Waits for room and for reads."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Somebody will ask for ``pages``, in this order. Answered at once with those that need no further asking: they are
    in memory or on their way."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class Reserve:
    """``size`` bytes of the memory are wanted for something else than pages. Waits for room."""

    ticket: int
    size: int


@dataclass(frozen=True, slots=True)
class Look:
    """Somebody computes on the copies of ``keys``, pages of keys, that are on the device, and of the values with them.
    Answered at once, by ``Show``, with these; they stay there."""

    ticket: int
    keys: Pages


Request = Open | HoldPages | FetchPages | ReadAhead | Reserve | Look

# --- other events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seal:
    """``pages`` are full: they will not change, and may leave memory."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class LetGo:
    """One use of each of ``pages``, held, has ended."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class AddRef:
    """One block table more has each of ``pages``."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class Drop:
    """One block table less has each of ``pages``; a page that none has is freed."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class Score:
    """``pages`` got attention: ``scores`` are added to what they had, or, ``anew``, take its place."""

    pages: Pages
    scores: Sequence[float]
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Unreserve:
    """``size`` bytes that were reserved are not needed any more."""

    size: int


@dataclass(frozen=True, slots=True)
class Offer:
    """``keys`` and ``values``, sealed just now, of the same tokens, may get a copy on the device; ``newer`` bytes of
    their block table, in pages newer than these, are about to come."""

    keys: Page
    values: Page
    newer: int


@dataclass(frozen=True, slots=True)
class Looked:
    """All that was wanted of the copies of ``keys``, from one ``Look``, has been given to the device to compute."""

    keys: Pages


@dataclass(frozen=True, slots=True)
class Lifted:
    """The copy of ``keys`` and ``values`` to the device has ended, or ``failed``."""

    keys: Page
    values: Page
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PagesRead:
    """Read number ``read`` has ended: its pages lie in their slots, verified. With an ``error`` nothing there may be
    used."""

    read: int
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class PagesWritten:
    """Write number ``write`` has ended: its pages are on flash, or, with an ``error``, are not."""

    write: int
    error: PenstockError | None = None


@dataclass(frozen=True, slots=True)
class SetLimit:
    """``size`` bytes of the memory may be used from now on."""

    size: int


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing more will be asked for; reads and writes under way are still to end."""


KVEvent = (
    Request
    | Cancel
    | Seal
    | LetGo
    | AddRef
    | Drop
    | Score
    | Unreserve
    | Offer
    | Looked
    | Lifted
    | PagesRead
    | PagesWritten
    | SetLimit
    | Close
)

# --- actions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wake:
    """The request ``ticket`` is answered with ``pages``."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class ReadPages:
    """Read ``pages``, which lie one after the other from byte ``place`` of the file, into their slots."""

    read: int
    place: int
    pages: Pages

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(page.size for page in self.pages)


@dataclass(frozen=True, slots=True)
class WritePages:
    """Write ``pages`` from their slots, one after the other, to byte ``place`` of the file, which is then to be
    ``length`` bytes long. One write is under way at a time."""

    write: int
    place: int
    pages: Pages
    length: int

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(page.size for page in self.pages)


@dataclass(frozen=True, slots=True)
class Lift:
    """Copy the pages of ``pair``, which are held until that has ended, to its room on the device; after the copies that
    were begun before."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Show:
    """The request ``ticket`` is answered with ``pairs``, which are on the device."""

    ticket: int
    pairs: Sequence[Pair]


KVAction = Wake | Show | Refuse | ReadPages | WritePages | Lift | Discard
