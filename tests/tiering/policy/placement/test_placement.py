"""Placement: within the budget, the least it says is the least, more memory never streams more."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import BudgetTooSmall
from penstock.tiering.policy.placement.placement import NO_OVERLAP, Placement, SizedBlock, place, with_working_memory
from penstock.tiering.units import PAGE, BlockId, MiB

sizes = st.integers(1, 40).map(lambda pages: pages * PAGE)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[SizedBlock], dict[BlockId, bool]]:
    """Blocks of a made-up model, and its embeddings."""
    blocks = [
        SizedBlock(BlockId("dense", "", n), length, True) for n, length in enumerate(draw(st.lists(sizes, max_size=2)))
    ]
    dense = draw(st.lists(sizes, max_size=12))
    blocks += [SizedBlock(BlockId("dense", f"layer{n}"), length, False) for n, length in enumerate(dense)]
    experts = draw(st.one_of(st.lists(sizes, max_size=12), sizes.map(lambda length: [length] * 12)))
    blocks += [SizedBlock(BlockId("expert", "experts", n), length, False) for n, length in enumerate(experts)]
    if experts and draw(st.booleans()):
        residuals = draw(st.one_of(sizes.map(lambda length: [length]), st.lists(sizes, min_size=1, max_size=3)))
        found = [BlockId("expert", "experts", n).residual(1) for n in range(len(experts))]
        blocks += [SizedBlock(block, residuals[n % len(residuals)], False) for n, block in enumerate(found)]
    embeddings = {BlockId("dense", "layer0"): draw(st.booleans())} if dense and draw(st.booleans()) else {}
    return blocks, embeddings


def least(blocks: list[SizedBlock], embeddings: dict[BlockId, bool], budget: int) -> int:
    """The least budget that ``place`` accepts, as its refusal of a smaller one says."""
    with pytest.raises(BudgetTooSmall) as caught:
        place(blocks, budget, embeddings=embeddings)
    found = re.search(r"at least (\d+) bytes", str(caught.value))
    assert found
    return int(found[1])


def check(placement: Placement, blocks: list[SizedBlock]) -> None:
    length = {block.id: block.length for block in blocks}
    assert placement.host_bytes <= placement.budget
    assert sum(length[block] for block in placement.resident) == placement.resident_bytes
    assert sum(length[block] for block in placement.pinned) == placement.pinned_bytes
    assert sum(length[block] for block in placement.streamed) == placement.streamed_bytes
    dense = [block.id for block in blocks if block.id.kind == "dense"]
    placed = [*placement.resident, *placement.pinned, *placement.streamed]
    assert sorted(placed + [block for block in placement.by_row if block not in placed]) == sorted(dense)
    assert all(length[block] <= placement.stream_region_bytes for block in placement.streamed)
    experts = [block.length for block in blocks if block.id.kind == "expert"]
    assert placement.expert_region_bytes >= max(experts, default=0)
    regions = (placement.resident_bytes, placement.pinned_bytes, placement.stream_region_bytes)
    regions = (*regions, placement.expert_region_bytes, placement.residual_region_bytes)
    assert all(region % PAGE == 0 for region in regions)
    residuals = [block.length for block in blocks if block.id.kind == "residual"]
    assert 0 <= placement.residual_region_bytes <= sum(residuals) == placement.residual_total_bytes
    if placement.expert_region_bytes < sum(experts):
        cache = placement.expert_region_bytes + placement.residual_region_bytes + max(experts)
        assert placement.residual_region_bytes <= cache / 4, "experts come first"


@given(models(), st.floats(0, 1.5))
def test_every_budget_is_kept_or_refused(model: tuple[list[SizedBlock], dict[BlockId, bool]], share: float) -> None:
    blocks, embeddings = model
    total = sum(block.length for block in blocks)
    budget = int(share * total)
    try:
        placement = place(blocks, budget, embeddings=embeddings)
    except BudgetTooSmall:
        needed = least(blocks, embeddings, budget)
        assert budget < needed
        check(place(blocks, needed, embeddings=embeddings), blocks)
    else:
        check(placement, blocks)
        more = place(blocks, budget + 8 * PAGE, embeddings=embeddings)
        price = max(placement.stream_region_bytes, int(NO_OVERLAP * total))  # of room to read ahead
        assert more.streamed_bytes <= placement.streamed_bytes + price


@given(models())
def test_what_fits_is_kept(model: tuple[list[SizedBlock], dict[BlockId, bool]]) -> None:
    blocks, embeddings = model
    total = sum(block.length for block in blocks)
    placement = place(blocks, with_working_memory(total), embeddings=embeddings)
    assert not placement.streamed
    assert not placement.by_row
    assert placement.expert_share == 1


def test_pinned_layers_are_spread_evenly() -> None:
    blocks = [SizedBlock(BlockId("dense", f"layer{n:02}"), 4 * MiB, False) for n in range(40)]
    placement = place(blocks, 120 * MiB)
    kept = [index for index, block in enumerate(blocks) if block.id in set(placement.pinned)]
    gaps = [after - before for before, after in pairwise(kept)]
    assert len(kept) > 15
    assert max(gaps) <= 3


def test_a_large_output_layer_is_pinned_rather_than_given_a_large_region() -> None:
    blocks = [SizedBlock(BlockId("dense", f"layer{n}"), 2 * MiB, False) for n in range(100)]
    blocks.append(SizedBlock(BlockId("dense", "lm_head"), 60 * MiB, False))
    placement = place(blocks, 160 * MiB)
    assert BlockId("dense", "lm_head") in placement.pinned
    assert placement.stream_region_bytes < 60 * MiB


def test_a_region_has_room_to_read_ahead_though_more_is_streamed_then() -> None:
    sizes = (8, 1, 1, 8, 22, 22, 22)
    blocks = [
        SizedBlock(BlockId("dense", f"layer{n}.{part}"), size * MiB, False)
        for n in range(20)
        for part, size in enumerate(sizes)
    ]
    placement = place(blocks, 1430 * MiB)  # just enough for all that is large, and one smaller block
    streamed = [block.length for block in blocks if block.id in set(placement.streamed)]
    assert placement.stream_region_bytes >= 2 * max(streamed)


def test_refusal_says_what_is_needed() -> None:
    blocks = [SizedBlock(BlockId("dense", "model.layers.3.mlp"), 8 * MiB, False)]
    with pytest.raises(BudgetTooSmall, match=r"largest layer 'model.layers.3.mlp' with 8.00 MiB; set host_memory to"):
        place(blocks, 4 * MiB)
