"""Setups, events and actions as plain lists of numbers and texts, and back (pure)."""

from collections.abc import Iterable
from typing import Any

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
from ..units import BlockId, Extent

Plain = list[Any]
"""A letter and what belongs to it."""


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


def setup_from(value: dict[str, Any]) -> Setup:
    """What ``setup_to`` gave."""
    homes = {
        BlockId(kind, module, part): Home(Extent(file, offset, length), *rest)
        for kind, module, part, file, offset, length, *rest in value["homes"]
    }
    blocks = list(homes)
    return Setup(**(value | {"homes": homes, "cycle": [blocks[n] for n in value["cycle"]]}))


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

    def event_from(self, value: Plain) -> Event:
        """What ``event`` gave. Raises ValueError, LookupError or TypeError for anything else."""
        match value:
            case ["B", stream]:
                return Begin(stream)
            case ["E", stream]:
                return End(stream)
            case ["A", ticket, stream, blocks]:
                return Acquire(ticket, stream, self._blocks_of(blocks))
            case ["R", stream, blocks]:
                return Release(stream, self._blocks_of(blocks))
            case ["X", stream, certain, guessed, seconds, residuals]:
                return Expect(
                    stream, self._blocks_of(certain), self._blocks_of(guessed), seconds, self._blocks_of(residuals)
                )
            case ["C", ticket]:
                return Cancel(ticket)
            case ["D", read]:
                return ReadDone(read)
            case ["F", read, words]:
                return ReadFailed(read, ReadError(words))
            case ["L", limits]:
                return Resize(limits)
        raise ValueError(f"no event: {value}")

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

    def action_from(self, value: Plain) -> Action:
        """What ``action`` gave. Raises ValueError, LookupError or TypeError for anything else."""
        match value:
            case ["g", ticket, block, region, offset, residual_slots]:
                slot = self._slot(block, region, offset)
                return Grant(ticket, self._blocks[block], slot, tuple(self._slot(*place) for place in residual_slots))
            case ["x", ticket, words]:
                return Refuse(ticket, ReadError(words))
            case ["r", read, purpose, parts]:
                return Read(read, tuple(self._part(*part) for part in parts), Purpose(purpose))
            case ["d", offset, length]:
                return Discard(offset, length)
        raise ValueError(f"no action: {value}")

    # --- blocks and slots -------------------------------------------------------------------------------------------

    def _many(self, blocks: Iterable[BlockId]) -> list[int]:
        return [self._number[block] for block in blocks]

    def _blocks_of(self, numbers: list[int]) -> tuple[BlockId, ...]:
        return tuple(self._blocks[number] for number in numbers)

    def _place(self, slot: Slot) -> tuple[int, int]:
        """A slot is as long as its block."""
        return self._region[slot.region], slot.offset

    def _slot(self, block: int, region: int, offset: int) -> Slot:
        return Slot(self._regions[region], offset, self._extents[block].length)

    def _part(self, block: int, region: int, offset: int) -> Part:
        return Part(self._blocks[block], self._extents[block], self._slot(block, region, offset))
