"""Dealing blocks to drives: in proportion, alternating, the same every time, and end to end on each drive."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.checkpoints import layout as layout_module
from penstock.runtime.checkpoints.layout import Layout
from penstock.runtime.packing.arrange.stripes import deal, stripe
from penstock.tiering.store.bundle.manifest import Block, BundleDrive
from penstock.tiering.units import PAGE, BlockId, Extent, MiB

speeds = st.lists(st.integers(1, 10**11), min_size=1, max_size=4)


def block(module: str, pages: int, part: int | None = None) -> Block:
    id_ = BlockId("dense", module) if part is None else BlockId("expert", module, part)
    return Block(id_, Extent(0, 0, pages * PAGE), "", ())


def plan(blocks: list[Block]) -> Layout:
    return Layout(tuple(blocks), {})


@given(speeds, st.lists(st.integers(1, 50), max_size=60))
def test_every_run_of_blocks_is_shared_as_the_speeds_say(rates: list[int], pages: list[int]) -> None:
    blocks = [block("experts", size, part) for part, size in enumerate(pages)]
    dealt = deal(blocks, rates)
    assert dealt == deal(blocks, rates)
    largest = max(pages, default=0)
    for start, end in itertools.combinations(range(0, len(blocks) + 1, 7), 2):
        total = sum(pages[start:end])
        for drive, rate in enumerate(rates):
            got = sum(size for size, where in zip(pages[start:end], dealt[start:end], strict=True) if where == drive)
            assert abs(got - total * rate / sum(rates)) <= len(rates) * largest + 1e-6


def test_neighbours_alternate() -> None:
    blocks = [block("experts", 3, part) for part in range(6)]
    assert deal(blocks, [5, 5]) == [0, 1, 0, 1, 0, 1]
    assert deal(blocks, [2, 1]) == [0, 1, 0, 0, 1, 0]
    assert deal(blocks, [1, 1, 1]) == [0, 1, 2, 0, 1, 2]
    assert deal(blocks, [7]) == [0] * 6


@given(st.integers(1, 1000), st.integers(1, 9), st.integers(1, 9))
def test_every_layer_has_its_share_whatever_the_embedding_weighs(embedding: int, fast: int, slow: int) -> None:
    sizes = [8, 2, 2, 8, 30, 30, 30]
    blocks = [block("model.embed", embedding)]
    blocks += [block(f"model.layers.{layer}.m{n}", size) for layer in range(6) for n, size in enumerate(sizes)]
    dealt = deal(blocks, [fast, slow])[1:]
    share = sum(sizes) * fast / (fast + slow)
    for layer in range(6):
        here = dealt[layer * len(sizes) : (layer + 1) * len(sizes)]
        assert abs(sum(size for size, drive in zip(sizes, here, strict=True) if drive == 0) - share) <= 2 * max(sizes)


def test_experts_and_dense_blocks_are_dealt_apart() -> None:
    dense = [block(f"l.{n}.attention", 9) for n in range(4)]
    experts = [block(f"l.{n}.experts", 2, 0) for n in range(4)]
    mixed = [b for pair in zip(dense, experts, strict=True) for b in pair]
    assert deal(mixed, [1, 1]) == [0, 0, 1, 1, 0, 0, 1, 1]


@given(speeds, st.lists(st.integers(1, 300), max_size=40))
def test_what_a_drive_gets_lies_end_to_end_in_its_own_files(rates: list[int], pages: list[int]) -> None:
    drives = [BundleDrive(f"/{n}" if n else "", rate) for n, rate in enumerate(rates)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "FILE_LIMIT", MiB)
        before = plan([block("experts", size, part) for part, size in enumerate(pages)])
        after = stripe(before, drives)
        assert after.digest() == before.digest(), "it holds the same"
    assert [(b.id, b.extent.length) for b in after.blocks] == [(b.id, b.extent.length) for b in before.blocks]
    ends = [0] * len(after.drives)
    for placed, drive in zip(after.blocks, deal(before.blocks, rates), strict=True):
        extent = placed.extent
        assert after.drives[extent.file] == drive
        assert extent.offset == ends[extent.file]
        ends[extent.file] = extent.end
    assert [file.length for file in after.files] == ends
    assert [file.drive for file in after.files] == list(after.drives)
    assert all(file.length <= max(MiB, 300 * PAGE) for file in after.files)


def test_without_drives_a_layout_stays_as_it_is() -> None:
    before = plan([block("m", 3)])
    assert stripe(before, ()) is before
