"""Random worlds of three tiers, by seed: a model, budgets as tight as they may be, and what streams do with it."""

import random
import re
from collections.abc import Callable

from penstock.tiering.errors import BudgetTooSmall
from penstock.tiering.events import PINNING_STREAM
from penstock.tiering.planner.regions import EXPERTS, PINNED, STREAM
from penstock.tiering.planner.setup import Setup, setup_of
from penstock.tiering.policy.drive_reading import Reading
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.placement.placement import Placement, SizedBlock
from penstock.tiering.policy.placement.shrinking import Divisions
from penstock.tiering.policy.placement.tiered import Tiers as Placements
from penstock.tiering.policy.placement.tiered import place_in_tiers
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.ledger import StreamModel
from tests.support.worlds.lifts import Fault, Tiers
from tests.support.worlds.worlds import World, lay_out

STEPS = 60
"""Events that are chosen in each world, beside what follows from them."""


def least(place: Callable[[int], object]) -> int:
    """The least budget with which ``place`` can do, as it says itself."""
    try:
        place(0)
    except BudgetTooSmall as refusal:
        found = re.search(r"at least (\d+) bytes", str(refusal))
        assert found
        return int(found[1])
    return 0


class Run:
    """World number ``seed``, and the streams in it."""

    def __init__(self, seed: int) -> None:
        self._dice = dice = random.Random(seed)
        self.placements, self.least_below, world, below = _worlds(dice)
        fault = Fault()
        if dice.random() < 0.5:
            bad = dice.choice([None, *world.homes])
            fault = Fault(bad, copies=dice.choice([0, 3, 7]), reads=dice.choice([0, 3, 7]))
        self.tiers = Tiers(world, below, dice.randint(1, 3), fault)
        self._dense = [block for block in world.homes if block.kind == "dense"]
        self._streamed = world.inside(STREAM)
        self._experts = world.inside(EXPERTS)
        self._residuals = [block for block in world.homes if block.kind == "residual"]

    def go(self) -> "Run":
        """All of it; who waits in the end is an error."""
        above = self.tiers.above
        if pinned := tuple(above.world.inside(PINNED)):
            above.acquire(above.streams[PINNING_STREAM], pinned)
            self.tiers.settle()
        for _ in range(STEPS):
            self._step()
        self.tiers.run_out()
        return self

    def _step(self) -> None:
        tiers, dice = self.tiers, self._dice
        pending = tiers.pending
        if pending and dice.random() < 0.45:
            tiers.land(*dice.choice(pending))
            return
        stream = dice.choice([stream for stream in tiers.above.streams.values() if stream.number != PINNING_STREAM])
        self._act(stream)
        tiers.settle()

    def _act(self, stream: StreamModel) -> None:
        """What a compute thread may do next."""
        tiers, dice, above = self.tiers, self._dice, self.tiers.above
        if stream.failed:
            above.end(stream)
        elif stream.ticket is not None:
            self._while_it_waits(stream)
        elif not stream.running and not stream.held:
            tiers.begin(stream)
        elif (chance := dice.random()) < 0.05 and stream.running:
            above.end(stream)
        elif chance < 0.2 and self._experts:
            chosen = dice.sample(self._experts, dice.randint(0, len(self._experts)))
            certain = dice.randint(0, len(chosen))
            residuals = dice.sample(self._residuals, dice.randint(0, len(self._residuals)))
            tiers.expect(stream, chosen[:certain], chosen[certain:], residuals)
        elif chance < 0.4 and stream.held:
            above.release(stream, dice.choice(sorted(stream.held)))
        else:
            self._acquire(stream)

    def _while_it_waits(self, stream: StreamModel) -> None:
        """It uses what it has got of several experts; now and then it gives up."""
        experts = sorted(block for block in stream.held if block.kind != "dense")
        if self._dice.random() < 0.1:
            self.tiers.above.cancel(stream)
        elif experts and all(block.kind == "expert" for block in stream.wants):
            self.tiers.above.release(stream, self._dice.choice(experts))

    def _acquire(self, stream: StreamModel) -> None:
        """Experts, or a dense block: the next, or any; it may keep dense ones that it holds."""
        dice, above = self._dice, self.tiers.above
        keep = dice.random() < 0.3
        for block in list(stream.held.elements()):
            if block.kind != "dense" or not keep:
                above.release(stream, block)
        if self._experts and dice.random() < 0.5:
            above.acquire(stream, tuple(dice.sample(self._experts, dice.randint(1, len(self._experts)))))
        elif self._streamed and dice.random() < 0.8:
            above.acquire(stream, (self._streamed[above.positions.get(stream.number, 0) % len(self._streamed)],))
        elif self._dense:
            above.acquire(stream, (dice.choice(self._dense),))


def _worlds(dice: random.Random) -> tuple[Placements, int, World, Setup]:
    """What lies where, the least bytes that would do below, the tier above, and what the one below begins with."""
    blocks = _model(dice)
    sizes = {block.id: block for block in blocks}
    embeddings = {BlockId("dense", "layers.0.a"): dice.random() < 0.5} if dice.random() < 0.3 else {}
    total = sum(block.length for block in blocks)

    def placed(device: int, host: int) -> Placements:
        return place_in_tiers(blocks, device=device, host=host, embeddings=embeddings)

    floor = least(lambda device: placed(device, 10 * total))
    device = dice.choice([floor, dice.randint(floor, max(floor, total))])
    floor = least(lambda host: placed(device, host))
    host = dice.choice([floor, dice.randint(floor, max(floor, total))])
    placements = placed(device, host)
    drives = [dice.randint(0, 1) for _ in blocks] if dice.random() < 0.3 else []
    homes = lay_out([(block.id, "", block.length // PAGE) for block in blocks], drives=drives)
    count = 2 if drives else 1
    eviction, depth = dice.choice(sorted(EVICTION)), dice.randint(1, 3)
    reading = Reading("threads", dice.randint(1, 8) * PAGE, depth)

    def setup(inside: list[BlockId], placement: Placement, reading: Reading, drives: int) -> Setup:
        divisions = Divisions([sizes[block] for block in inside], placement, floor=placement.budget)
        places = ((block, homes[block].extent, homes[block].drive if drives > 1 else 0) for block in inside)
        return setup_of(places, placement, divisions, reading, drives=drives, eviction=eviction, guess=True)

    below = setup([block.id for block in placements.below], placements.host, reading, count)
    top = setup([*sizes], placements.device, Reading("", 0, depth * count + 2), 1)
    return placements, floor, World(dict(top.homes), dict(top.regions), top.depth, top.read_limit, eviction), below


def _model(dice: random.Random) -> list[SizedBlock]:
    blocks: list[SizedBlock] = []
    experts, residuals = dice.choice([0, 3, 5]), dice.choice([0, 0, 1, 2])
    alike = dice.choice([2, None])
    for layer in range(dice.randint(1, 3)):
        for name in "abc"[: dice.randint(1, 3)]:
            pages = dice.randint(1, 3)
            blocks.append(SizedBlock(BlockId("dense", f"layers.{layer}.{name}"), pages * PAGE, dice.random() < 0.1))
        for n in range(experts):
            expert = BlockId("expert", f"layers.{layer}.mlp", n)
            blocks.append(SizedBlock(expert, (alike or dice.randint(1, 3)) * PAGE, False))
            blocks += [SizedBlock(expert.residual(plane), plane * PAGE, False) for plane in range(1, residuals + 1)]
    return blocks
