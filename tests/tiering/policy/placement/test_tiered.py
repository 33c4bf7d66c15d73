"""What lies in which tier: every block somewhere, every budget kept, the least that is named is the least."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import BudgetTooSmall
from penstock.tiering.policy.placement.placement import NO_OVERLAP, SizedBlock, row_cache_bytes
from penstock.tiering.policy.placement.tiered import Tiers, place_in_tiers
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.lifted import least
from tests.tiering.policy.placement.test_placement import check, models

Model = tuple[list[SizedBlock], dict[BlockId, bool]]
shares = st.floats(0, 1.5)


def total_of(blocks: list[SizedBlock]) -> int:
    return sum(block.length for block in blocks)


def tiers_of(model: Model, device: int, host: int, scratch: int = 0) -> Tiers:
    blocks, embeddings = model
    return place_in_tiers(blocks, device=device, host=host, embeddings=embeddings, scratch=scratch)


def least_above(model: Model) -> int:
    return least(lambda device: tiers_of(model, device, 100 * total_of(model[0])))


def fitted(model: Model, above: float, below: float) -> Tiers:
    """The model in budgets of these shares of it, or the least that do."""
    total = total_of(model[0])
    device = max(int(above * total), least_above(model))
    host = max(int(below * total), least(lambda host: tiers_of(model, device, host)))
    return tiers_of(model, device, host)


@given(models(), shares, shares)
def test_every_block_stays_on_the_device_or_passes_through_the_host(model: Model, above: float, below: float) -> None:
    tiers = fitted(model, above, below)
    device, host = tiers.device, tiers.host
    passing = [block.id for block in tiers.below]
    stay = {*device.resident, *device.pinned}
    assert not stay & set(passing)
    assert len(set(passing)) == len(passing)
    dense = {block.id for block in model[0] if block.id.kind == "dense"}
    assert dense == stay | {block for block in passing if block.kind == "dense"} | set(device.by_row)
    assert {block for block in passing if block.kind == "dense"} == set(device.streamed)
    experts = {block.id for block in model[0] if block.id.kind == "expert"}
    assert experts <= set(passing), "an expert that the cache above lets go must be somewhere"
    assert {*host.resident, *host.pinned, *host.streamed} == set(device.streamed)
    assert host.by_row == ()


@given(models(), shares, shares)
def test_both_budgets_are_kept(model: Model, above: float, below: float) -> None:
    tiers = fitted(model, above, below)
    lengths = {block.id: block.length for block in model[0]}
    assert tiers.device.host_bytes <= tiers.device.budget
    assert tiers.device.row_cache_bytes == 0, "rows lie in host memory"
    assert tiers.host.scratch_bytes == sum(row_cache_bytes(lengths[block]) for block in tiers.device.by_row)
    check(tiers.host, list(tiers.below))


@given(models(), shares, shares)
def test_residuals_pass_through_the_host_only_if_each_has_room_there(model: Model, above: float, below: float) -> None:
    tiers = fitted(model, above, below)
    inside = [block.length for block in tiers.below if block.id.kind == "residual"]
    assert tiers.host.residual_region_bytes >= max(inside, default=0)


@given(models(), shares, st.integers(0, 40).map(lambda pages: pages * PAGE))
def test_the_least_that_is_named_is_the_least(model: Model, above: float, scratch: int) -> None:
    total = total_of(model[0])
    floor = least(lambda device: tiers_of(model, device, 100 * total, scratch))
    device = max(int(above * total), floor)
    under = least(lambda host: tiers_of(model, device, host, scratch))
    tiers_of(model, floor, 100 * total, scratch)
    tiers_of(model, device, under, scratch)
    if floor:
        with pytest.raises(BudgetTooSmall, match=f"device_memory is .* set device_memory to at least {floor} bytes"):
            tiers_of(model, floor - 1, 100 * total, scratch)
    if under:
        with pytest.raises(BudgetTooSmall, match=f"host_memory is .* set host_memory to at least {under} bytes"):
            tiers_of(model, device, under - 1, scratch)


@given(models(), shares, st.lists(shares, min_size=2, max_size=4).map(sorted))
def test_more_host_memory_never_reads_more_from_flash(model: Model, above: float, belows: list[float]) -> None:
    found = [fitted(model, above, below) for below in belows]
    dense = sum(block.length for block in found[0].below if block.id.kind == "dense")
    for before, after in pairwise(found):
        allowed = NO_OVERLAP * dense if not ample(after) else 0
        assert after.host.streamed_bytes <= before.host.streamed_bytes + allowed


@given(models(), st.lists(shares, min_size=2, max_size=4).map(sorted), shares)
def test_more_device_memory_never_copies_more(model: Model, aboves: list[float], below: float) -> None:
    found = [fitted(model, above, below) for above in aboves]
    dense = sum(block.length for block in model[0] if block.id.kind == "dense")
    for before, after in pairwise(found):
        assert after.device.streamed_bytes <= before.device.streamed_bytes + NO_OVERLAP * dense
        assert after.host.streamed_bytes <= before.host.streamed_bytes + NO_OVERLAP * dense


def ample(tiers: Tiers) -> bool:
    """Whether the region that blocks stream through below lets the drive read ahead."""
    largest = max((b.length for b in tiers.below if b.id in tiers.host.streamed), default=0)
    return tiers.host.stream_region_bytes > largest
