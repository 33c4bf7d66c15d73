"""The arrangement of a model in memory (pure): where each block goes, what gives way, what the planners begin with.

``arrange_memory`` is the only place that derives it. Loading builds the engine from an arrangement, ``penstock plan``
reports one, and the simulator runs the planners of one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import BudgetTooSmall
from ..policy.drive_reading import Reading, streamed_lengths, typical_read
from ..policy.placement.placement import Placement, SizedBlock, place, with_working_memory
from ..policy.placement.shrinking import Divisions
from ..policy.placement.tiered import place_in_tiers
from ..units import BlockId, Extent, format_size
from .setup import Setup, device_setup, setup_of


class ExpertLayer(NamedTuple):
    """The experts of the module ``path``: how many there are, how many a token uses, bytes of all of them."""

    path: str
    experts: int
    per_token: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """The parts of a model that move between tiers, and what a token asks of them.

    ``blocks`` are in the order of the bundle, each with its extent there; the bundle lies on ``drives`` drives.
    ``embeddings`` are the blocks that can be read by row, each with whether nothing else uses it. Decoding takes
    ``scratch`` bytes. ``formats`` are those of encoded weights, ``quality`` says which planes of experts are read.
    ``layers`` are the layers with experts. ``guessed``: nothing tells how many experts a token uses, so all of them are
    counted. ``foreseen``: a layer's experts can be guessed from the layer before. ``dtype`` is the model's.
    """

    blocks: tuple[SizedBlock, ...]
    extents: tuple[Extent, ...]
    drives: int
    embeddings: Mapping[BlockId, bool]
    scratch: int
    formats: frozenset[str]
    quality: str
    layers: tuple[ExpertLayer, ...]
    guessed: bool
    foreseen: bool
    dtype: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.length for block in self.blocks)


@dataclass(frozen=True, slots=True)
class MemoryBudgets:
    """Memory to divide, in bytes. ``host`` is for weights and KV together, of which ``floor`` stays when the machine
    runs short of memory (None: the least that would do). ``device`` is the same on a device above the host; None where
    the CPU computes. KV in pages takes ``kv_host`` and ``kv_device`` of them, and keeps at least ``kv_least`` of
    ``kv_host``."""

    host: int
    floor: int | None = None
    device: int | None = None
    kv_host: int = 0
    kv_least: int = 0
    kv_device: int = 0

    @property
    def weights_host(self) -> int:
        """Bytes of host memory for weights."""
        return max(0, self.host - self.kv_host)

    @property
    def weights_device(self) -> int | None:
        """Bytes of the device's memory for weights; None where the CPU computes."""
        return None if self.device is None else max(0, self.device - self.kv_device)

    @property
    def kv_floor(self) -> int:
        """Bytes of ``kv_host`` that stay when the machine runs short of memory: KV's share of ``floor``. A device
        fetches from pages in host memory by itself: there, all of them stay."""
        if self.device is not None:
            return self.kv_host
        written = 0 if self.floor is None else self.floor * self.kv_host // max(1, self.host)
        return min(max(self.kv_least, written), self.kv_host)

    def with_weights(self, size: int) -> "MemoryBudgets":
        """The same with ``size`` bytes of host memory for weights."""
        return replace(self, host=size + self.kv_host)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """All that is decided about a model's memory before its first byte is read.

    ``host`` divides host memory among the blocks that pass through it, ``passing``; ``divisions`` say what stays of
    that at a lower limit. ``device`` divides the device's memory among all blocks; None where the CPU computes.
    ``reading`` says how reads are made on each drive. ``host_setup`` and ``device_setup`` are what the planners of both
    tiers begin with.
    """

    outline: Outline
    budgets: MemoryBudgets
    reading: Reading
    host: Placement
    divisions: Divisions
    passing: frozenset[BlockId]
    device: Placement | None
    host_setup: Setup
    device_setup: Setup | None

    @property
    def floor(self) -> int:
        """Bytes of host memory, for weights and KV, that stay when the machine runs short of memory."""
        return self.divisions.floor + self.budgets.kv_floor


class _Places(NamedTuple):
    """The placement of both tiers, and the blocks that pass through host memory."""

    host: Placement
    below: tuple[SizedBlock, ...]
    device: Placement | None = None


def arrange_memory(
    outline: Outline, budgets: MemoryBudgets, reading: Reading, *, eviction: str, guess: bool
) -> Arrangement:
    """Arrange ``outline`` within ``budgets``. ``eviction`` is a name in EVICTION; ``guess`` allows reads on a guess.

    Raises BudgetTooSmall, which says of which memory there is too little, and the least that would do.
    """
    places = _place(outline, budgets)
    divisions = _divide(outline, budgets, places)
    passing = frozenset(block.id for block in places.below)
    pairs = tuple(zip(outline.blocks, outline.extents, strict=True))
    host_setup = setup_of(
        ((block.id, extent, block.drive) for block, extent in pairs if block.id in passing),
        places.host,
        divisions,
        reading,
        drives=outline.drives,
        eviction=eviction,
        guess=guess,
    )
    above = None
    if places.device is not None:
        above = device_setup(pairs, places.device, reading, drives=outline.drives, eviction=eviction, guess=guess)
    return Arrangement(
        outline=outline,
        budgets=budgets,
        reading=reading,
        host=places.host,
        divisions=divisions,
        passing=passing,
        device=places.device,
        host_setup=host_setup,
        device_setup=above,
    )


def typical_block(outline: Outline, budgets: MemoryBudgets) -> int:
    """Bytes of the reads that a drive is to be measured with, for ``outline`` within ``budgets``: as long as those of a
    run. Raises BudgetTooSmall."""
    return typical_read(streamed_lengths(outline.blocks, _place(outline, budgets).host))


def least_host(outline: Outline, budgets: MemoryBudgets) -> int:
    """The least bytes of host memory for weights with which ``arrange_memory`` accepts ``budgets`` otherwise. Raises
    BudgetTooSmall where those of the device are too few."""
    too_small, enough = -1, 2 * with_working_memory(outline.total_bytes)
    _place(outline, budgets.with_weights(enough))
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        try:
            _place(outline, budgets.with_weights(middle))
            enough = middle
        except BudgetTooSmall:
            too_small = middle
    return enough


def _place(outline: Outline, budgets: MemoryBudgets) -> _Places:
    """Raises BudgetTooSmall."""
    blocks, embeddings, scratch = outline.blocks, outline.embeddings, outline.scratch
    host, device = budgets.weights_host, budgets.weights_device
    with _kv_named(budgets):
        if device is None:
            return _Places(place(blocks, host, embeddings=embeddings, scratch=scratch), blocks)
        tiers = place_in_tiers(blocks, device=device, host=host, embeddings=embeddings, scratch=scratch)
        return _Places(tiers.host, tiers.below, tiers.device)


def _divide(outline: Outline, budgets: MemoryBudgets, places: _Places) -> Divisions:
    """The divisions of host memory at lower limits."""
    floor = budgets.floor
    if places.device is not None:
        # What a device fetches from by itself stays where it is: nothing goes when the machine runs short.
        return Divisions(places.below, places.host, floor=places.host.budget)
    if floor is not None:  # weights and KV have the same share of it as of the budget
        floor = floor * places.host.budget // budgets.host
    return Divisions(places.below, places.host, floor=floor, embeddings=outline.embeddings)


@contextmanager
def _kv_named(budgets: MemoryBudgets) -> Iterator[None]:
    """Where a budget is too small, say how much of it is for KV."""
    try:
        yield
    except BudgetTooSmall as error:
        taken = [("host", "host_memory", budgets.kv_host), ("device", "device_memory", budgets.kv_device)]
        besides = [
            f"[kv] {key} takes {format_size(size)} of {name} besides"
            for key, name, size in taken
            if size and str(error).startswith(name)
        ]
        if not besides:
            raise
        raise BudgetTooSmall("; ".join([str(error), *besides])) from error
