"""Events and actions of the KV planner as plain lists of numbers and texts, and back (pure).

Pages are numbered in the order in which they were opened. A list of pages is written as numbers, and as
``[first, step, count]`` where numbers follow each other in equal steps: those of a long context nearly all do.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import PenstockError, ReadError
from ..events import Cancel, Discard, Refuse
from ..kv.events import (
    AddRef,
    Close,
    Drop,
    FetchPages,
    HoldPages,
    KVAction,
    KVEvent,
    LetGo,
    Lift,
    Lifted,
    Look,
    Looked,
    Offer,
    Open,
    PagesRead,
    PagesWritten,
    ReadAhead,
    ReadPages,
    Reserve,
    Score,
    Seal,
    SetLimit,
    Show,
    Unreserve,
    Wake,
    WritePages,
)
from ..kv.pages import Page

Plain = list[Any]
"""A letter and what belongs to it."""

_REQUESTS: dict[type[HoldPages | FetchPages | ReadAhead], str] = {HoldPages: "H", FetchPages: "F", ReadAhead: "A"}
_LISTS: dict[type[Seal | LetGo | AddRef | Drop], str] = {Seal: "S", LetGo: "L", AddRef: "R", Drop: "D"}
_REQUEST_OF = {letter: kind for kind, letter in _REQUESTS.items()}
_LIST_OF = {letter: kind for kind, letter in _LISTS.items()}


class KVCodec:
    """Of one run, whose pages it knows. Of an error only its words are kept, and whether it is one of ours."""

    def __init__(self) -> None:
        self._pages: list[Page] = []
        self._number: dict[Page, int] = {}

    # --- events -----------------------------------------------------------------------------------------------------

    def event(self, event: KVEvent) -> Plain:
        """``event`` as plain values."""
        match event:
            case HoldPages() | FetchPages() | ReadAhead():
                return [_REQUESTS[type(event)], event.ticket, self._many(event.pages)]
            case Seal() | LetGo() | AddRef() | Drop():
                return [_LISTS[type(event)], self._many(event.pages)]
            case Open(ticket, page):
                self._add(page)
                return ["O", ticket, page.size, page.track, page.index, page.attention_score]
            case Score():
                return ["T", self._many(event.pages), list(event.scores), event.anew]
            case PagesRead():
                return ["E", event.read, *_words(event.error)]
            case PagesWritten():
                return ["W", event.write, *_words(event.error)]
            case Reserve():
                return ["V", event.ticket, event.size]
            case Unreserve():
                return ["U", event.size]
            case Look():
                return ["K", event.ticket, self._many(event.keys)]
            case Looked():
                return ["Q", self._many(event.keys)]
            case Offer():
                return ["P", self._number[event.keys], self._number[event.values], event.newer]
            case Lifted():
                return ["I", self._number[event.keys], self._number[event.values], event.failed]
            case SetLimit():
                return ["M", event.size]
            case Cancel():
                return ["C", event.ticket]
            case Close():
                return ["X"]

    def event_from(self, value: Plain) -> KVEvent:
        """What ``event`` gave; a page that is opened is a new one. Raises ValueError, LookupError or TypeError for
        anything else."""
        match value:
            case ["O", ticket, size, track, index, score]:
                page = Page(size, None, track, index, attention_score=score)
                self._add(page)
                return Open(ticket, page)
            case [letter, ticket, pages] if letter in _REQUEST_OF:
                return _REQUEST_OF[letter](ticket, self._pages_of(pages))
            case [letter, pages] if letter in _LIST_OF:
                return _LIST_OF[letter](self._pages_of(pages))
            case ["T", pages, scores, anew]:
                return Score(self._pages_of(pages), scores, anew)
            case ["E", read, *words]:
                return PagesRead(read, _error(words))
            case ["W", write, *words]:
                error = _error(words)
                if error is not None and not isinstance(error, PenstockError):
                    raise ValueError(f"no event: {value}")
                return PagesWritten(write, error)
        return self._rare_event_from(value)

    def _rare_event_from(self, value: Plain) -> KVEvent:
        match value:
            case ["V", ticket, size]:
                return Reserve(ticket, size)
            case ["U", size]:
                return Unreserve(size)
            case ["K", ticket, pages]:
                return Look(ticket, self._pages_of(pages))
            case ["Q", pages]:
                return Looked(self._pages_of(pages))
            case ["P", keys, values, newer]:
                return Offer(self._pages[keys], self._pages[values], newer)
            case ["I", keys, values, failed]:
                return Lifted(self._pages[keys], self._pages[values], failed)
            case ["M", size]:
                return SetLimit(size)
            case ["C", ticket]:
                return Cancel(ticket)
            case ["X"]:
                return Close()
        raise ValueError(f"no event: {value}")

    # --- actions ----------------------------------------------------------------------------------------------------

    def action(self, action: KVAction) -> Plain:
        """``action`` as plain values, with the places in memory that its pages have now."""
        match action:
            case Wake():
                return ["w", action.ticket, self._many(action.pages)]
            case Refuse():
                return ["x", action.ticket, str(action.error)]
            case ReadPages():
                return ["r", action.read, action.place, self._many(action.pages), _slots(action.pages)]
            case WritePages():
                many, slots = self._many(action.pages), _slots(action.pages)
                return ["p", action.write, action.place, many, slots, action.length]
            case Show():
                return ["s", action.ticket, [[*map(self._number.__getitem__, pair.pages)] for pair in action.pairs]]
            case Lift(pair):
                return ["l", *map(self._number.__getitem__, pair.pages), pair.at]
            case Discard():
                return ["d", action.offset, action.length]

    # --- pages ------------------------------------------------------------------------------------------------------

    def _add(self, page: Page) -> None:
        self._number[page] = len(self._pages)
        self._pages.append(page)

    def _many(self, pages: Iterable[Page]) -> Plain:
        return pack([self._number[page] for page in pages if not page.is_gone])

    def _pages_of(self, packed: Plain) -> list[Page]:
        return [self._pages[number] for number in unpack(packed)]


def pack(numbers: Sequence[int]) -> Plain:
    """``numbers``, with ``[first, step, count]`` in the place of three or more that follow in equal steps."""
    packed: Plain = []
    at = 0
    while at < len(numbers):
        end = at + 1
        if end < len(numbers):
            step = numbers[end] - numbers[at]
            while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
                end += 1
        if end - at < 3:
            packed.append(numbers[at])
            at += 1
        else:
            packed.append([numbers[at], step, end - at])
            at = end
    return packed


def unpack(packed: Plain) -> list[int]:
    """What was given to ``pack``."""
    numbers: list[int] = []
    for each in packed:
        if isinstance(each, list):
            first, step, count = each
            numbers += [first + step * number for number in range(count)]
        else:
            numbers.append(each)
    return numbers


def _slots(pages: Iterable[Page]) -> Plain:
    return pack([-1 if page.slot is None else page.slot for page in pages])


def _words(error: Exception | None) -> Plain:
    return [] if error is None else [str(error), isinstance(error, PenstockError)]


def _error(words: Plain) -> Exception | None:
    if not words:
        return None
    text, is_ours = words
    return ReadError(text) if is_ours else OSError(text)
