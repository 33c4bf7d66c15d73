"""What a look at a tier tells."""

from collections import Counter

import pytest

from penstock.tiering.planner.occupancy import look_at
from penstock.tiering.planner.regions import EXPERTS, PINNED, STREAM
from penstock.tiering.units import PAGE
from tests.support.rig import EXPERT, PINS, Rig


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.bridge.close()


def test_regions_fill_with_what_is_used(rig: Rig):
    rig.use(*PINS)
    rig.use(*EXPERT[:2])
    found = {region.name: region for region in rig.bridge.look(look_at).regions}
    assert [*found] == [PINNED, STREAM, EXPERTS]
    assert (found[PINNED].used, found[PINNED].limit) == (2 * PAGE, 2 * PAGE)
    assert (found[EXPERTS].used, found[EXPERTS].limit, found[EXPERTS].capacity) == (2 * PAGE, 3 * PAGE, 3 * PAGE)
    rig.bridge.resize({EXPERTS: PAGE})
    [experts] = [each for each in rig.bridge.look(look_at).regions if each.name == EXPERTS]
    assert (experts.used, experts.limit, experts.capacity) == (PAGE, PAGE, 3 * PAGE)


def test_uses_of_experts_are_counted_while_they_are_wanted(rig: Rig):
    rig.use(EXPERT[0])
    assert rig.bridge.look(look_at).experts == ()
    rig.planner.uses = Counter()
    rig.use(*EXPERT[1:4])
    rig.use(EXPERT[3])
    [layer] = rig.bridge.look(look_at).experts
    assert (layer.module, layer.uses) == ("mlp", (0, 1, 1, 2, 0, 0, 0, 0))
    assert layer.here == (False, True, True, True, False, False, False, False)
    rig.planner.uses = None
    rig.use(EXPERT[3])
    assert rig.bridge.look(look_at).experts == ()
