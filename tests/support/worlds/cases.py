"""Small worlds that are written out, for single cases."""

from penstock.tiering.events import Action, Read
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, RESIDUALS, STREAM
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World, lay_out

D = [BlockId("dense", f"d{n}") for n in range(6)]
X = [BlockId("expert", "m", n) for n in range(6)]


_REGION = {"dense": STREAM, "expert": EXPERTS, "residual": RESIDUALS}


def watch(
    *sizes: tuple[BlockId, int],
    stream: int = 0,
    experts: int = 0,
    residuals: int = 0,
    depth: int = 2,
    limit: int = 8,
    streams: int = 2,
) -> Watch:
    """Blocks and their pages, in the order they lie on flash; pages of the regions and of the longest read."""
    laid = [(block, _REGION[block.kind], pages) for block, pages in sizes]
    capacity = {PINNED: 0, KEPT: 0, STREAM: stream * PAGE, EXPERTS: experts * PAGE, RESIDUALS: residuals * PAGE}
    return Watch(World(lay_out(laid), capacity, depth, limit * PAGE), streams)


def reads(actions: list[Action]) -> list[tuple[BlockId, ...]]:
    return [tuple(part.block for part in action.parts) for action in actions if isinstance(action, Read)]


def land_all(w: Watch) -> None:
    while w.in_flight:
        w.complete(min(w.in_flight))
