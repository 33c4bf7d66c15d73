"""Setups, events and actions as plain lists of numbers and texts, and back (pure)."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..driving.strict_json import LARGEST, Fields, items, many, number, text, whole
from ..errors import ReadError
from ..events import (
    Acquire,
    Action,
    Begin,
    Cancel,
    Discard,
    End,
    Event,
    Expect,
    Grant,
    Part,
    Purpose,
    Read,
    ReadDone,
    ReadFailed,
    Refuse,
    Release,
    Resize,
    Slot,
)
from ..planner.regions import Home
from ..planner.setup import Setup
from ..policy.eviction import EVICTION
from ..units import BlockId, Extent

Plain = list[Any]
"""A letter and what belongs to it."""

_BYTES = 1 << 50
"""Most bytes of anything in a recording: no machine has more."""
_MANY = 1 << 16
_NAME = r"[^\0-\x1f\x7f]{0,1000}"


def setup_to(setup: Setup) -> dict[str, Any]:
    """``setup`` as plain values."""
    number = {block: n for n, block in enumerate(setup.homes)}
    return {
        "regions": dict(setup.regions),
        "limits": dict(setup.limits),
        "homes": [[*block, *_home(home)] for block, home in setup.homes.items()],
        "cycle": [number[block] for block in setup.cycle],
        "eviction": setup.eviction,
        "depth": setup.depth,
        "read_limit": setup.read_limit,
        "drives": setup.drives,
        "guess": setup.guess,
    }


def _home(home: Home) -> list[Any]:
    extent = home.extent
    return [extent.file, extent.offset, extent.length, home.region, home.drive, home.place, home.streamable]


def setup_from(value: object) -> Setup:
    """What ``setup_to`` gave. Raises ValueError for anything else."""
    fields = Fields(value)
    regions, limits = _sizes(fields.take("regions")), _sizes(fields.take("limits"))
    drives = fields.whole("drives", 1, _MANY)
    found = fields.many("homes", lambda home: _home_from(home, regions, drives))
    homes = dict(found)
    blocks = list(homes)
    setup = Setup(
        regions=regions,
        limits=limits,
        homes=homes,
        cycle=[blocks[n] for n in fields.many("cycle", lambda n: whole(n, 0, len(blocks) - 1))],
        eviction=fields.text("eviction", "|".join(EVICTION)),
        depth=fields.whole("depth", 1, _MANY),
        read_limit=fields.whole("read_limit", 0, _BYTES),
        drives=drives,
        guess=fields.flag("guess"),
    )
    fields.end()
    if len(homes) != len(found) or any(limit > regions.get(region, -1) for region, limit in limits.items()):
        raise ValueError("a block is there twice, or a region may use more than it has")
    return setup


def _sizes(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError("sizes by region were expected")
    return {text(region, _NAME): whole(size, 0, _BYTES) for region, size in value.items()}


def _home_from(value: object, regions: Mapping[str, int], drives: int) -> tuple[BlockId, Home]:
    kind, module, part, file, offset, length, region, drive, place, streamable = items(value, 10)
    if text(region, _NAME) not in regions or not isinstance(streamable, bool):
        raise ValueError("a block has no home")
    block = BlockId(
        text(kind, "dense|expert|residual"),  # type: ignore[arg-type]  # it is one of them
        text(module, _NAME),
        whole(part, 0, 1 << 31),
    )
    extent = Extent(whole(file, 0, _MANY), whole(offset, 0, _BYTES), whole(length, 1, _BYTES))
    at = None if place is None else whole(place, 0, _BYTES)
    return block, Home(extent, region, whole(drive, 0, drives - 1), at, streamable)


class Codec:
    """For the blocks and regions of one setup. Of an error only its words are kept."""

    def __init__(self, setup: Setup) -> None:
        self._blocks = list(setup.homes)
        self._number = {block: n for n, block in enumerate(self._blocks)}
        self._extents = [home.extent for home in setup.homes.values()]
        self._regions = list(setup.regions)
        self._region = {region: n for n, region in enumerate(self._regions)}

    # --- events -----------------------------------------------------------------------------------------------------

    def event(self, event: Event) -> Plain:
        match event:
            case Begin():
                return ["B", event.stream]
            case End():
                return ["E", event.stream]
            case Acquire():
                return ["A", event.ticket, event.stream, self._many(event.blocks)]
            case Release():
                return ["R", event.stream, self._many(event.blocks)]
            case Expect():
                said = self._many(event.certain), self._many(event.guessed), event.seconds, self._many(event.residuals)
                return ["X", event.stream, *said]
            case Cancel():
                return ["C", event.ticket]
            case ReadDone():
                return ["D", event.read]
            case ReadFailed():
                return ["F", event.read, str(event.error)]
            case Resize():
                return ["L", dict(event.limits)]

    def event_from(self, value: object) -> Event:
        """What ``event`` gave. Raises ValueError for anything else."""
        match value:
            case ["B", stream]:
                return Begin(_stream(stream))
            case ["E", stream]:
                return End(_stream(stream))
            case ["A", ticket, stream, blocks]:
                return Acquire(whole(ticket), _stream(stream), self._blocks_of(blocks))
            case ["R", stream, blocks]:
                return Release(_stream(stream), self._blocks_of(blocks))
            case ["X", stream, certain, guessed, seconds, residuals]:
                return Expect(
                    _stream(stream),
                    self._blocks_of(certain),
                    self._blocks_of(guessed),
                    number(seconds),
                    self._blocks_of(residuals),
                )
            case ["C", ticket]:
                return Cancel(whole(ticket))
            case ["D", read]:
                return ReadDone(whole(read))
            case ["F", read, str(words)]:
                return ReadFailed(whole(read), ReadError(words))
            case ["L", limits]:
                return Resize(_sizes(limits))
        raise ValueError("no event")

    # --- actions ----------------------------------------------------------------------------------------------------

    def action(self, action: Action) -> Plain:
        match action:
            case Grant():
                residual_slots = [
                    [self._number[block], *self._place(slot)]
                    for block, slot in zip(action.leased[1:], action.residual_slots, strict=True)
                ]
                return ["g", action.ticket, self._number[action.block], *self._place(action.slot), residual_slots]
            case Refuse():
                return ["x", action.ticket, str(action.error)]
            case Read():
                parts = [[self._number[part.block], *self._place(part.slot)] for part in action.parts]
                return ["r", action.read, action.purpose.value, parts]
            case Discard():
                return ["d", action.offset, action.length]

    def action_from(self, value: object) -> Action:
        """What ``action`` gave. Raises ValueError for anything else."""
        match value:
            case ["g", ticket, block, region, offset, list(residual_slots)]:
                slot = self._slot(block, region, offset)
                own = tuple(self._slot(*items(place, 3)) for place in residual_slots)
                return Grant(whole(ticket), self._block(block), slot, own)
            case ["x", ticket, str(words)]:
                return Refuse(whole(ticket), ReadError(words))
            case ["r", read, purpose, list(parts)]:
                own_parts = tuple(self._part(*items(part, 3)) for part in parts)
                return Read(whole(read), own_parts, Purpose(text(purpose, _NAME)))
            case ["d", offset, length]:
                return Discard(whole(offset), whole(length))
        raise ValueError("no action")

    # --- blocks and slots -------------------------------------------------------------------------------------------

    def _many(self, blocks: Iterable[BlockId]) -> list[int]:
        return [self._number[block] for block in blocks]

    def _blocks_of(self, numbers: object) -> tuple[BlockId, ...]:
        return many(numbers, self._block, len(self._blocks))

    def _block(self, number: object) -> BlockId:
        return self._blocks[whole(number, 0, len(self._blocks) - 1, "a block")]

    def _place(self, slot: Slot) -> tuple[int, int]:
        """A slot is as long as its block."""
        return self._region[slot.region], slot.offset

    def _slot(self, block: object, region: object, offset: object) -> Slot:
        extent = self._extents[whole(block, 0, len(self._blocks) - 1, "a block")]
        name = self._regions[whole(region, 0, len(self._regions) - 1, "a region")]
        return Slot(name, whole(offset, 0, _BYTES), extent.length)

    def _part(self, block: object, region: object, offset: object) -> Part:
        slot = self._slot(block, region, offset)
        return Part(self._block(block), self._extents[whole(block)], slot)


def _stream(value: object) -> int:
    return whole(value, -LARGEST, name="a stream")
