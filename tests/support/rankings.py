"""What tests of eviction rank, and how."""

from contextlib import closing

from penstock.tiering.policy.eviction import Eviction
from penstock.tiering.units import BlockId

BLOCKS = [BlockId("expert", module, part) for module in "mlk" for part in range(2)]


def ranking(policy: Eviction) -> list[BlockId]:
    with closing(policy.victims()) as victims:
        return list(victims)
