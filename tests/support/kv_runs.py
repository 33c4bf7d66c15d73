"""Random runs of the KV planner in its world: equal seeds give equal runs."""

import random

from penstock.tiering.units import MiB
from tests.support.kv_world import KVWorld

RUNS = 150
"""Seeds that find every bug of the mutation tests."""
STEPS = 160


def step(world: KVWorld, what: str, first: int, count: int) -> None:
    """One thing that may happen, by name."""
    match what:
        case "open":
            world.open(first, count // 7)
        case "seal":
            world.seal(offer=bool(first % 2))
        case "hold":
            world.hold(first, count)
        case "fetch":
            world.fetch(first, count)
        case "ahead":
            world.read_ahead(first, count)
        case "let go":
            world.let_go(first)
        case "share":
            world.add_ref(first, count)
        case "drop":
            world.drop(first, count, shared=not count % 3)
        case "score":
            world.score(first, count, anew=not count % 4)
        case "reserve":
            world.reserve(first)
        case "unreserve":
            world.unreserve()
        case "look":
            world.look(first)
        case "looked":
            world.looked()
        case "cancel":
            world.cancel(first)
        case "limit":
            world.set_limit(first)
        case "read":
            world.end_read(first, fails=not count % 5)
        case "written":
            world.end_write(fails=not count % 5)
        case "lifted":
            world.end_lift(fails=not count % 5)


HAPPENS = {
    "open": 12,
    "seal": 10,
    "hold": 5,
    "fetch": 8,
    "ahead": 5,
    "let go": 10,
    "share": 1,
    "drop": 1,
    "score": 3,
    "reserve": 1,
    "unreserve": 1,
    "look": 2,
    "looked": 2,
    "cancel": 1,
    "limit": 1,
    "read": 9,
    "written": 9,
    "lifted": 3,
}
"""What may happen, and how often beside the rest."""


def random_kv_run(seed: int) -> KVWorld:
    """A run to its end. Raises AssertionError where something is not as it must be."""
    dice = random.Random(seed)
    world = KVWorld(dice.choice((16, 24, 40)), flash=dice.choice((None, None, 2 * MiB)), device=dice.choice((0, 6)))
    happen(world, seed)
    return world


def happen(world: KVWorld, seed: int) -> None:
    """Random things, of which ``seed`` decides, and an end."""
    dice = random.Random(seed)
    names, weights = [*HAPPENS], [*HAPPENS.values()]
    for _ in range(STEPS):
        step(world, dice.choices(names, weights)[0], dice.randrange(100), dice.randrange(100))
    if not seed % 4:
        world.close()
    world.end()
