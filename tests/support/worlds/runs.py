"""Random worlds to simulate, by seed: a model, what streams do with it, devices, and what goes wrong."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from penstock.tiering.planner.planner import Planner
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.sim.devices import Drive, Memory
from penstock.tiering.sim.noise import Noise, Spell
from penstock.tiering.sim.outcome import Outcome
from penstock.tiering.sim.simulator import simulate
from penstock.tiering.sim.workload import Layer, Pass, Workload, forward, guessing, layers_of
from penstock.tiering.units import PAGE, BlockId, KiB, MiB
from tests.support.worlds.watched import Watched
from tests.support.worlds.worlds import World, lay_out

WORLDS = 2000
"""That the tests go through; a bug should show in one of them."""


@dataclass
class Run:
    """All that decides a simulation."""

    world: World
    workload: Workload
    drives: list[Drive]
    memory: Memory
    noise: Noise
    seed: int
    resizes: list[tuple[float, Mapping[str, int]]]

    def simulate(self, planner: Planner) -> Outcome:
        return simulate(
            self.workload,
            planner,
            drives=self.drives,
            memory=self.memory,
            noise=self.noise,
            seed=self.seed,
            resizes=self.resizes,
        )

    def watched(self) -> tuple[Outcome, Watched]:
        """Simulate it with every action checked, and let the reads land that are under way at the end."""
        watched = Watched(self.world, len(self.workload.streams))
        outcome = self.simulate(cast(Planner, watched))
        assert self.noise.failing or not any(each.failed for each in outcome.passes), "refused, and nothing is wrong"
        assert len(outcome.passes) == sum(len(cast(Any, passes)) for passes in self.workload.streams)
        watched.run_out()
        return outcome, watched


def random_run(seed: int) -> Run:
    """Run number ``seed``: small, tight and often troubled."""
    dice = random.Random(seed)
    world = _world(dice)
    layers = layers_of(world.homes, seconds=dice.choice([0.0, 1e-4]))
    pinch = [(dice.uniform(0, 0.01), _limits(world, dice)) for _ in range(dice.choice([0, 0, 1, 3]))]
    return Run(
        world,
        Workload(layers, [_passes(layers, dice) for _ in range(dice.randint(1, 3))], guess_seconds=1e-5),
        [_drive(dice) for _ in range(world.drives)],
        Memory(dice.choice([1e8, 1e10]), overhead=dice.choice([0.0, 1e-5]), contention=dice.choice([0.0, 0.3])),
        _noise(world.drives, dice),
        seed,
        pinch,
    )


def _world(dice: random.Random) -> World:
    sizes: list[tuple[BlockId, str, int]] = []
    experts, residuals = dice.choice([0, 3, 5]), dice.choice([0, 0, 1, 2])
    for layer in range(dice.randint(1, 3)):
        for name in "abc"[: dice.randint(1, 3)]:
            block = BlockId("dense", f"layers.{layer}.{name}")
            sizes.append((block, dice.choice([PINNED, KEPT, STREAM, STREAM]), dice.randint(1, 3)))
        for n in range(experts):
            expert = BlockId("expert", f"layers.{layer}.mlp", n)
            sizes.append((expert, EXPERTS, 2))
            sizes += [(expert.residual(plane), RESIDUALS, plane) for plane in range(1, residuals + 1)]
    capacity = {}
    for region in (PINNED, KEPT, STREAM, EXPERTS):
        pages = [size for _, where, size in sizes if where in ((region, KEPT) if region == STREAM else (region,))]
        low = sum(pages) if region in (PINNED, KEPT) else max(pages, default=0)
        capacity[region] = dice.choice([low, dice.randint(low, sum(pages))]) * PAGE
    pages = [size for _, where, size in sizes if where == RESIDUALS]
    capacity[RESIDUALS] = dice.randint(0, sum(pages)) * PAGE
    drives = [dice.randint(0, 1) for _ in sizes] if dice.random() < 0.3 else []
    homes, place = lay_out(sizes, drives=drives), capacity[PINNED]
    for block, region, pages in sizes:
        if region == KEPT:
            homes[block] = replace(homes[block], place=place, streamable=dice.random() < 0.8)
            place += pages * PAGE
    eviction = dice.choice(sorted(EVICTION))
    return World(homes, capacity, dice.randint(1, 3), dice.randint(1, 8) * PAGE, eviction)


def _passes(layers: list[Layer], dice: random.Random) -> list[Pass]:
    counts = [len(layer.experts) for layer in layers if layer.experts]
    passes = []
    for _ in range(dice.randint(1, 2)):
        tokens = dice.choice([1, 1, 2, 40])
        passes.append(forward([[dice.sample(range(count), 2) for count in counts] for _ in range(tokens)]))
    return list(guessing(passes, min(counts, default=0), precision=dice.random(), seed=dice.randrange(1000)))


def _limits(world: World, dice: random.Random) -> dict[str, int]:
    """Some limits, down to what is needed, or up again."""
    least = {KEPT: 0, STREAM: world.largest(STREAM, KEPT), EXPERTS: world.largest(EXPERTS), RESIDUALS: 0}
    chosen = dice.sample(sorted(least), dice.randint(1, 3))
    return {
        region: dice.choice([least[region], dice.randint(least[region] // PAGE, world.capacity[region] // PAGE) * PAGE])
        for region in chosen
    }


def _drive(dice: random.Random) -> Drive:
    return Drive(
        dice.choice([1e7, 1e9]),
        latency=dice.choice([0.0, 1e-4]),
        single=dice.choice([5e6, 1e10]),
        contention=dice.choice([0.0, 0.25]),
        enough=dice.choice([8 * KiB, 8 * MiB]),
        checksum=dice.choice([1e8, 1e10]),
        handling=dice.choice([0.0, 1e-5]),
    )


def _noise(drives: int, dice: random.Random) -> Noise:
    if dice.random() < 0.3:
        return Noise()
    spell = Spell(dice.randrange(drives), start=dice.uniform(0, 0.01), seconds=0.01, speed=0.1)
    return Noise(
        failing=dice.choice([0.0, 0.1]), slow=dice.choice([0.0, 0.2]), jitter=dice.choice([0.0, 0.3]), spells=(spell,)
    )
