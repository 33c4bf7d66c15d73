"""The arena: nothing resident before its time, views that share memory, memory that goes with its last view."""

import ctypes
import gc
import warnings
import weakref
from pathlib import Path

import psutil
import pytest
import torch

from penstock.kernels.io.directio import address_of
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE

MiB = 1 << 20

HUGE = 2 << 20


def huge_pages_work() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.mark.parametrize("huge_pages", [True, False])
@pytest.mark.parametrize("length", [1, PAGE, HUGE - 1, 3 * HUGE + 5 * PAGE])
def test_length_and_alignment(length, huge_pages):
    arena = Arena(length, huge_pages=huge_pages)
    assert arena.length == -(-length // PAGE) * PAGE
    assert arena.address % PAGE == 0
    if huge_pages and arena.length >= HUGE:
        assert arena.address % HUGE == 0
    assert arena.resident_bytes() == 0
    whole = arena.view(0, arena.length)
    assert address_of(whole) == arena.address
    whole[:] = b"\x01" * arena.length
    assert arena.resident_bytes() == arena.length


def test_small_pages_keep_a_sparse_region_sparse():
    arena = Arena(4 * HUGE, huge_pages=False)
    arena.view(0, 1)[0] = 1
    arena.view(HUGE + 5, 1)[0] = 1
    assert arena.resident_bytes() == 2 * PAGE


def test_huge_pages_come_whole():
    if not huge_pages_work():
        pytest.skip("this kernel gives no huge pages")
    arena = Arena(4 * HUGE + PAGE)
    arena.view(HUGE, 1)[0] = 1
    assert arena.resident_bytes() == HUGE
    # The last page has no huge page to itself: nothing behind the arena may become resident.
    before = psutil.Process().memory_info().rss
    arena.view(4 * HUGE, 1)[0] = 1
    assert psutil.Process().memory_info().rss - before < HUGE // 2
    assert arena.resident_bytes() == HUGE + PAGE


def test_a_region_far_larger_than_memory_costs_nothing():
    arena = Arena(1 << 42, huge_pages=False)
    arena.view(1 << 41, 4)[:] = b"abcd"
    assert bytes(arena.view(1 << 41, 4)) == b"abcd"


def test_views_and_tensors_share_the_memory():
    arena = Arena(4 * PAGE)
    tensor = arena.tensor(PAGE, torch.float32, (3, 4))
    assert tensor.data_ptr() == arena.address + PAGE
    assert tensor.is_contiguous()
    tensor.copy_(torch.arange(12).reshape(3, 4))
    assert torch.equal(torch.frombuffer(arena.view(PAGE, 48), dtype=torch.float32), torch.arange(12.0))
    arena.view(PAGE, 4)[:] = bytes(4)
    assert tensor[0, 0] == 0


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn]
)
def test_tensors_of_every_kind(dtype):
    arena = Arena(PAGE)
    tensor = arena.tensor(8 * dtype.itemsize, dtype, (2, 0, 3))
    assert tensor.shape == (2, 0, 3)
    assert arena.tensor(8, dtype, ()).shape == ()
    tensor = arena.tensor(8, dtype, (5,))
    assert (tensor.dtype, tensor.shape) == (dtype, (5,))
    tensor.copy_(torch.tensor([0, 1, 0, 1, 1], dtype=dtype))
    assert arena.tensor(8, torch.uint8, (5 * dtype.itemsize,)).any()


def test_tensors_bring_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Arena(PAGE).tensor(0, torch.uint8, (10,)).add_(1)


def test_ranges_outside_are_refused():
    arena = Arena(2 * PAGE)
    for offset, length in ((-1, 1), (0, -1), (2 * PAGE, 1), (PAGE, PAGE + 1)):
        with pytest.raises(ValueError, match="outside"):
            arena.view(offset, length)
        with pytest.raises(ValueError, match="outside"):
            arena.discard(offset, length)
    with pytest.raises(ValueError, match="outside"):
        arena.tensor(2 * PAGE - 4, torch.float32, (2,))
    with pytest.raises(ValueError, match="not a multiple"):
        arena.tensor(2, torch.float32, (1,))
    with pytest.raises(ValueError, match="positive"):
        Arena(0)
    assert arena.view(2 * PAGE, 0).nbytes == 0


@pytest.mark.parametrize("huge_pages", [True, False])
def test_discard_gives_whole_pages_back(huge_pages):
    arena = Arena(4 * HUGE, huge_pages=huge_pages)
    whole = arena.view(0, arena.length)
    whole[:] = b"\x07" * arena.length
    arena.discard(100, 3 * PAGE)
    assert arena.resident_bytes() == arena.length - 2 * PAGE
    assert bytes(whole[PAGE : 3 * PAGE]) == bytes(2 * PAGE)
    assert bytes(whole[:PAGE]) == bytes(whole[3 * PAGE : 4 * PAGE]) == b"\x07" * PAGE
    arena.discard(HUGE, 2 * HUGE)
    assert bytes(whole[HUGE : 3 * HUGE]) == bytes(2 * HUGE)
    assert bytes(whole[3 * HUGE :]) == b"\x07" * HUGE
    arena.discard(10, 20)
    arena.discard(0, 0)
    assert bytes(whole[:PAGE]) == b"\x07" * PAGE


@pytest.mark.parametrize("kind", ["view", "tensor"])
def test_memory_lives_as_long_as_its_last_view(kind):
    arena = Arena(64 * PAGE)
    address, mapping = arena.address, weakref.ref(arena._map)
    view = arena.view(PAGE, 8) if kind == "view" else arena.tensor(PAGE, torch.uint8, (8,))
    view[0] = 42
    arena.close()
    arena.close()
    del arena
    gc.collect()
    assert mapping() is not None
    part = view[0:2]
    del view
    gc.collect()
    assert part[0] == 42
    part[1] = 43
    assert ctypes.string_at(address + PAGE, 2) == b"\x2a\x2b"
    del part
    gc.collect()
    assert mapping() is None


def test_a_closed_arena_hands_out_nothing():
    arena = Arena(PAGE)
    arena.close()
    for use in (
        lambda: arena.view(0, 1),
        lambda: arena.tensor(0, torch.uint8, (1,)),
        lambda: arena.discard(0, PAGE),
        arena.resident_bytes,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_prefault_makes_resident_and_changes_nothing() -> None:
    arena = Arena(32 * MiB)
    arena.view(5, 3)[:] = b"abc"
    arena.prefault(0, 16 * MiB)
    assert arena.resident_bytes() == 16 * MiB
    assert bytes(arena.view(4, 5)) == b"\0abc\0"


def test_prefault_brings_back_nothing_that_was_discarded() -> None:
    arena = Arena(8 * MiB)
    arena.prefault(0, 8 * MiB)
    arena.discard(0, 8 * MiB)
    arena.prefault(0, 8 * MiB)
    assert arena.resident_bytes() == 0


def test_prefault_of_a_closed_arena() -> None:
    arena = Arena(MiB)
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        arena.prefault(0, MiB)


@pytest.mark.parametrize("huge_pages", [True, False])
def test_what_is_to_be_done_before_the_memory_goes_is_done_while_it_is_there(huge_pages):
    arena, found = Arena(4 * HUGE, huge_pages=huge_pages), []
    address = arena.address
    for number in (1, 2):
        arena.call_before_release(lambda number=number: found.append((number, ctypes.string_at(address, 1))))
    tensor = arena.tensor(0, torch.uint8, (16,)).fill_(7)
    arena.close()
    assert found == []
    del tensor
    assert found == [(1, b"\x07"), (2, b"\x07")]  # though the arena itself is still here
    with pytest.raises(ValueError, match="closed"):
        arena.call_before_release(found.clear)
