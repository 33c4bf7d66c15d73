"""Divisions of a placement: within every limit, nested, and the whole placement at the ceiling."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.tiering.errors import BudgetTooSmall
from penstock.tiering.policy.placement.placement import SizedBlock, place, with_working_memory
from penstock.tiering.policy.placement.shrinking import Division, Divisions
from penstock.tiering.units import PAGE, BlockId, MiB
from tests.tiering.policy.placement.test_placement import models

Model = tuple[list[SizedBlock], dict[BlockId, bool]]


def divided(model: Model, share: float, floor: int | None = 0) -> Divisions:
    """The divisions of a budget of ``share`` of the model."""
    blocks, embeddings = model
    budget = int(share * with_working_memory(sum(block.length for block in blocks)))
    try:
        placement = place(blocks, budget, embeddings=embeddings)
    except BudgetTooSmall:
        assume(False)
    return Divisions(blocks, placement, floor=floor, embeddings=embeddings)


def kept(divisions: Divisions, division: Division, length: dict[BlockId, int]) -> set[BlockId]:
    """The elastic blocks whose places lie below the limit."""
    found, end = set(), 0
    for block in divisions.elastic:
        end += length[block]
        if end <= division.kept:
            found.add(block)
    return found


@given(models(), st.floats(0.1, 1.2), st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_every_limit_is_kept_and_sets_are_nested(model: Model, share: float, between: list[float]) -> None:
    blocks, embeddings = model
    length = {block.id: block.length for block in blocks}
    divisions = divided(model, share)
    placement = divisions._placement
    assert sorted([*divisions.bound, *divisions.elastic]) == sorted(placement.pinned)
    before: set[BlockId] = set()
    spans = divisions.ceiling - divisions.floor
    for limit in sorted({divisions.floor, *(divisions.floor + int(part * spans) for part in between)}):
        division = divisions.at(limit)
        assert division.host_bytes <= limit
        assert min(division.kept, division.stream, division.experts) >= 0
        here = kept(divisions, division, length)
        assert sum(length[block] for block in here) == division.kept, "a limit lies between two places"
        assert here >= before
        before = here
        streamed = {*placement.streamed, *divisions.elastic} - here
        streamed = {block for block in streamed if not divisions.read_only_by_row(block)}
        assert all(length[block] <= division.stream for block in streamed), "a block that nothing can hold"
        assert division.stream <= divisions.stream_capacity
        experts = [block.length for block in blocks if block.id.kind == "expert"]
        assert division.experts >= max(experts, default=0)
        assert division.experts <= placement.expert_region_bytes
        assert division.residuals <= placement.residual_region_bytes
        if division.experts < placement.expert_region_bytes:
            assert division.residuals < max(experts), "residuals go before experts"
        assert all(part % PAGE == 0 for part in (division.bound, division.kept, division.stream, division.experts))
    assert all(block in embeddings for block in divisions.by_row)
    assert set(divisions.by_row) <= set(divisions.elastic)


@given(models(), st.floats(0.1, 1.5), st.integers(0, 2000))
def test_the_ceiling_is_the_whole_placement(model: Model, share: float, pages: int) -> None:
    divisions = divided(model, share, pages * PAGE)
    placement, whole = divisions._placement, divisions.at(divisions.ceiling)
    assert whole.host_bytes == placement.host_bytes
    assert whole.bound + whole.kept == placement.resident_bytes + placement.pinned_bytes
    assert whole.kept == sum(block.length for block in model[0] if block.id in divisions.elastic)
    assert divisions.floor <= divisions.ceiling <= placement.budget
    assert divisions.floor >= min(pages * PAGE, divisions.ceiling), "never below what was asked for"


@given(models(), st.floats(0.1, 1.5))
def test_the_least_that_stays_is_the_least_that_runs(model: Model, share: float) -> None:
    divisions = divided(model, share, floor=None)
    blocks, embeddings = model
    assert place(blocks, divisions.floor, embeddings=embeddings).budget == divisions.floor
    if divisions.floor < divisions.ceiling:
        with pytest.raises(BudgetTooSmall):
            place(blocks, divisions.floor - 1, embeddings=embeddings)


def layers(count: int, size: int) -> list[SizedBlock]:
    return [SizedBlock(BlockId("dense", f"layer{n:03}"), size, False) for n in range(count)]


def test_what_goes_is_spread_evenly() -> None:
    blocks = layers(64, 8 * MiB)
    placement = place(blocks, 1 << 30)
    assert not placement.streamed
    divisions = Divisions(blocks, placement, floor=None)
    division = divisions.at(300 * MiB)
    here = kept(divisions, division, dict.fromkeys(placement.pinned, 8 * MiB)) | set(divisions.bound)
    assert 20 < len(here) < 40
    for start in range(0, 64, 16):
        quarter = sum(block.id in here for block in blocks[start : start + 16])
        assert abs(quarter - len(here) / 4) <= 1


def test_a_large_block_goes_last() -> None:
    blocks = [*layers(40, 2 * MiB), SizedBlock(BlockId("dense", "lm_head"), 60 * MiB, False)]
    divisions = Divisions(blocks, place(blocks, 1 << 30), floor=120 * MiB)
    assert BlockId("dense", "lm_head") in divisions.bound
    assert divisions.stream_capacity < 60 * MiB


def test_floor_and_host_alike_switch_it_off() -> None:
    blocks = layers(40, 2 * MiB)
    placement = place(blocks, 60 * MiB)
    divisions = Divisions(blocks, placement, floor=60 * MiB)
    assert divisions.floor == divisions.ceiling
    assert divisions.elastic == ()
    assert set(divisions.bound) == set(placement.pinned)
    assert divisions.stream_capacity == placement.stream_region_bytes


def test_more_than_the_model_is_no_ceiling() -> None:
    blocks = layers(10, 2 * MiB)
    divisions = Divisions(blocks, place(blocks, 1 << 34), floor=None)
    assert divisions.ceiling == with_working_memory(20 * MiB)


def test_an_embedding_is_read_by_row_as_soon_as_not_all_fits() -> None:
    embedding = SizedBlock(BlockId("dense", "embed"), 30 * MiB, False)
    blocks = [embedding, *layers(40, 2 * MiB)]
    divisions = Divisions(blocks, place(blocks, 1 << 30), floor=None, embeddings={embedding.id: True})
    assert divisions.elastic[-1] == embedding.id
    assert divisions.by_row == (embedding.id,)
    division = divisions.at(divisions.ceiling - PAGE)
    assert division.kept == sum(block.length for block in blocks[1:] if block.id in divisions.elastic)
    assert division.stream == 0
    assert division.aside > 0
