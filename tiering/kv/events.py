"""Events that the KV planner takes, and actions that it answers with (pure).

Events and actions carry ``Page`` objects. The planner keeps its books in them, so attention finds the slot of a page
without a look-up. Each request has a ``ticket``, a number of its own. It is answered once under this number, by
``Wake``, ``Show`` or ``Refuse``. ``Cancel``, ``Refuse`` and ``Discard`` are shared with the planner of weights.
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
    """A new ``page`` needs a slot for tokens that are about to be added. Waits for room."""

    ticket: int
    page: Page


@dataclass(frozen=True, slots=True)
class HoldPages:
    """Attention needs those of ``pages`` that are in memory. Answered at once with these pages, held."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class FetchPages:
    """Attention needs all of ``pages``, neighbours on flash, held. Waits for room and for reads."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Attention will need ``pages``, in this order. Answered at once with the first of them, all in memory or being
    read. They need not be asked for again."""

    ticket: int
    pages: Pages


@dataclass(frozen=True, slots=True)
class Reserve:
    """``size`` bytes of the memory are needed for data other than pages. Waits for room."""

    ticket: int
    size: int


@dataclass(frozen=True, slots=True)
class Look:
    """Attention needs the device copies of ``keys``, pages of keys, and of their values. Answered at once, by ``Show``,
    with the copies that are on the device. They stay there until ``Looked``."""

    ticket: int
    keys: Pages


Request = Open | HoldPages | FetchPages | ReadAhead | Reserve | Look

# --- other events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seal:
    """``pages`` are full. They no longer change, and may leave memory."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class LetGo:
    """One use of each of ``pages``, which were held, has ended."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class AddRef:
    """Each of ``pages`` is in one more block table."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class Drop:
    """Each of ``pages`` is in one block table less. A page that is in none is freed."""

    pages: Pages


@dataclass(frozen=True, slots=True)
class Score:
    """``pages`` got attention: ``scores`` are added to their attention scores, or replace them if ``anew``."""

    pages: Pages
    scores: Sequence[float]
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Unreserve:
    """``size`` reserved bytes are no longer needed."""

    size: int


@dataclass(frozen=True, slots=True)
class Offer:
    """``keys`` and ``values`` of the same tokens were just sealed, and may get a copy on the device. Their block table
    is about to get ``newer`` bytes in newer pages."""

    keys: Page
    values: Page
    newer: int


@dataclass(frozen=True, slots=True)
class Looked:
    """One use of the device copies of ``keys``, from ``Look``, is over: the device has all its work on them."""

    keys: Pages


@dataclass(frozen=True, slots=True)
class Lifted:
    """The copy of ``keys`` and ``values`` to the device has ended. ``failed``: they are not there."""

    keys: Page
    values: Page
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PagesRead:
    """Read number ``read`` has ended. Its pages are in their slots, verified. With an ``error``, the content of the
    slots must not be used."""

    read: int
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class PagesWritten:
    """Write number ``write`` has ended. Its pages are on flash, or are not if there is an ``error``."""

    write: int
    error: PenstockError | None = None


@dataclass(frozen=True, slots=True)
class SetLimit:
    """From now on, ``size`` bytes of the memory may be used."""

    size: int


@dataclass(frozen=True, slots=True)
class Close:
    """No request follows. Reads and writes under way still end."""


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
    """Read ``pages`` into their slots. They lie one after the other from byte ``place`` of the file."""

    read: int
    place: int
    pages: Pages

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(page.size for page in self.pages)


@dataclass(frozen=True, slots=True)
class WritePages:
    """Write ``pages`` from their slots to the file, one after the other from byte ``place``. The file is ``length``
    bytes long afterwards. One write is under way at a time."""

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
    """Copy the pages of ``pair`` to its room on the device, after earlier copies. The pages are held until the copy has
    ended."""

    pair: Pair


@dataclass(frozen=True, slots=True)
class Show:
    """The request ``ticket`` is answered with ``pairs``, which are on the device."""

    ticket: int
    pairs: Sequence[Pair]


KVAction = Wake | Show | Refuse | ReadPages | WritePages | Lift | Discard
