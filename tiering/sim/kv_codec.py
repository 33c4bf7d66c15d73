"""Events and actions of the KV planner as plain lists of numbers and texts, and back (pure).

Pages are numbered in the order in which they were opened. A list of pages is written as numbers, and as
``[first, step, count]`` where numbers follow each other in equal steps: those of a long context nearly all do.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..driving.strict_json import LARGEST, many, number, whole
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

_AT_FIRST, _MORE = 1 << 22, 1 << 12
"""Pages that lists may name at the beginning, and more for each event: a few letters could name any number of them."""
_BYTES = 1 << 50

_REQUESTS: dict[type[HoldPages | FetchPages | ReadAhead], str] = {HoldPages: "H", FetchPages: "F", ReadAhead: "A"}
_LISTS: dict[type[Seal | LetGo | AddRef | Drop], str] = {Seal: "S", LetGo: "L", AddRef: "R", Drop: "D"}
_REQUEST_OF = {letter: kind for kind, letter in _REQUESTS.items()}
_LIST_OF = {letter: kind for kind, letter in _LISTS.items()}


class KVCodec:
    """Of one run, whose pages it knows. Of an error only its words are kept, and whether it is one of ours."""

    def __init__(self) -> None:
        self._pages: list[Page] = []
        self._number: dict[Page, int] = {}
        self._left = _AT_FIRST

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

    def event_from(self, value: object) -> KVEvent:
        """What ``event`` gave; a page that is opened is a new one. Raises ValueError for anything else."""
        self._left += _MORE
        match value:
            case ["O", ticket, size, track, index, score]:
                page = Page(
                    whole(size, 1, _BYTES), None, whole(track), whole(index), attention_score=number(score, "a score")
                )
                self._add(page)
                return Open(whole(ticket), page)
            case [str(letter), ticket, pages] if letter in _REQUEST_OF:
                return _REQUEST_OF[letter](whole(ticket), self._pages_of(pages))
            case [str(letter), pages] if letter in _LIST_OF:
                return _LIST_OF[letter](self._pages_of(pages))
            case ["T", pages, scores, bool(anew)]:
                found = self._pages_of(pages)
                return Score(found, [*many(scores, number, len(found), "scores")], anew)
            case ["E", read, *words]:
                return PagesRead(whole(read), _error(words))
            case ["W", write, *words]:
                error = _error(words)
                if error is not None and not isinstance(error, PenstockError):
                    raise ValueError("no event")
                return PagesWritten(whole(write), error)
        return self._rare_event_from(value)

    def _rare_event_from(self, value: object) -> KVEvent:
        match value:
            case ["V", ticket, size]:
                return Reserve(whole(ticket), whole(size, 0, _BYTES))
            case ["U", size]:
                return Unreserve(whole(size, 0, _BYTES))
            case ["K", ticket, pages]:
                return Look(whole(ticket), self._pages_of(pages))
            case ["Q", pages]:
                return Looked(self._pages_of(pages))
            case ["P", keys, values, newer]:
                return Offer(self._page(keys), self._page(values), whole(newer, 0, _BYTES))
            case ["I", keys, values, bool(failed)]:
                return Lifted(self._page(keys), self._page(values), failed)
            case ["M", size]:
                return SetLimit(whole(size, 0, _BYTES))
            case ["C", ticket]:
                return Cancel(whole(ticket))
            case ["X"]:
                return Close()
        raise ValueError("no event")

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

    def _pages_of(self, packed: object) -> list[Page]:
        found = [self._pages[number] for number in unpack(packed, least=0, end=len(self._pages), most=self._left)]
        self._left -= len(found)
        return found

    def _page(self, value: object) -> Page:
        return self._pages[whole(value, 0, len(self._pages) - 1, "a page")]


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


def unpack(packed: object, *, least: int = -LARGEST, end: int = LARGEST, most: int = LARGEST) -> list[int]:
    """What was given to ``pack``: at most ``most`` numbers from ``least`` up to ``end``. Raises ValueError for anything
    else."""
    numbers: list[int] = []
    for each in many(packed, lambda each: each, most, "pages"):
        if isinstance(each, list):
            first, step, count = many(each, lambda part: whole(part, -LARGEST), 3)
            whole(count, 1, most - len(numbers), "a number of pages")
            for one in (first, first + step * (count - 1)):
                whole(one, least, end - 1, "a page")
            numbers += [first + step * number for number in range(count)]
        else:
            numbers.append(whole(each, least, end - 1, "a page"))
    return numbers


def _slots(pages: Iterable[Page]) -> Plain:
    return pack([-1 if page.slot is None else page.slot for page in pages])


def _words(error: Exception | None) -> Plain:
    return [] if error is None else [str(error), isinstance(error, PenstockError)]


def _error(words: Plain) -> Exception | None:
    if not words:
        return None
    text, is_ours = words
    if not isinstance(text, str) or not isinstance(is_ours, bool):
        raise ValueError("no error")
    return ReadError(text) if is_ours else OSError(text)
