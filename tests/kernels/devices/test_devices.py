"""What every device does, emulated or real."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from penstock.kernels.devices import emulated
from penstock.kernels.devices.base import Device, DeviceArena, NoDevice
from penstock.kernels.devices.copies import Copies
from penstock.kernels.devices.cuda import Cuda, CudaArena
from penstock.kernels.devices.emulated import Emulated
from penstock.kernels.memory.arena import Arena, ArenaClosed

KiB = 1 << 10
SOON = 20.0

DEVICES: dict[str, Callable[[], Device]] = {"emulated": Emulated, "cuda": lambda: Cuda("cuda")}
DEVICE_PARAMS = [
    pytest.param("emulated"),
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    ),
]


@pytest.fixture(params=DEVICE_PARAMS)
def device(request: pytest.FixtureRequest) -> Device:
    return DEVICES[request.param]()


@pytest.fixture
def copies(device: Device) -> Iterator[Copies]:
    copies = device.copies()
    yield copies
    copies.close()


class TestArena:
    """The memory of devices; CUDA's own code is tried on host memory where there is no CUDA."""

    @pytest.fixture(params=[*DEVICE_PARAMS, "cuda's code"])
    def arena(self, request: pytest.FixtureRequest) -> DeviceArena:
        if request.param in DEVICES:
            return DEVICES[request.param]().arena(64 * KiB)
        return CudaArena(torch.device("cpu"), 64 * KiB)

    def test_tensors_share_its_bytes(self, arena: DeviceArena) -> None:
        assert arena.length == 64 * KiB
        whole = arena.tensor(0, torch.uint8, (64 * KiB,))
        assert whole.data_ptr() == arena.address
        part = arena.tensor(4096, torch.float32, (2, 3))
        part.copy_(torch.arange(6.0).view(2, 3))
        assert part.is_contiguous()
        assert torch.equal(whole[4096 : 4096 + 24].view(torch.float32).cpu(), torch.arange(6.0))
        assert arena.tensor(64 * KiB, torch.uint8, (0,)).numel() == 0

    @pytest.mark.parametrize(("offset", "count"), [(-4, 1), (64 * KiB, 1), (64 * KiB - 8, 3), (0, 16 * KiB + 1)])
    def test_nothing_outside(self, arena: DeviceArena, offset: int, count: int) -> None:
        with pytest.raises(ValueError, match="outside an arena of 65536 bytes"):
            arena.tensor(offset, torch.float32, (count,))

    def test_nothing_askew(self, arena: DeviceArena) -> None:
        with pytest.raises(ValueError, match="multiple"):
            arena.tensor(2, torch.float32, (1,))

    def test_tensors_outlive_it(self, arena: DeviceArena) -> None:
        tensor = arena.tensor(0, torch.uint8, (16,)).fill_(7)
        arena.discard(4096, 4096)
        arena.close()
        arena.close()
        with pytest.raises(ArenaClosed):
            arena.tensor(0, torch.uint8, (16,))
        assert tensor.sum() == 7 * 16


def test_more_memory_than_there_is(device: Device) -> None:
    with pytest.raises(MemoryError):
        device.arena(1 << 60)


def test_memory(device: Device) -> None:
    free, total = device.memory()
    assert 0 < free <= total
    assert device.name.startswith(device.compute.type) or device.name == "emulated"


def test_what_is_copied_arrives_in_order(device: Device, copies: Copies) -> None:
    """From pages that are kept in place, and from others; behind marks, to one place again and again."""
    host, ends = Arena(1024 * KiB), threading.Semaphore(0)
    found: list[tuple[Exception | None, int]] = []
    device.lock_pages(host)
    arena = device.arena(64 * KiB)
    target = arena.tensor(0, torch.uint8, (64 * KiB,))
    for number in range(16):
        source = host.tensor(number * 64 * KiB, torch.uint8, (64 * KiB,)).fill_(number + 1)
        mark = device.mark()

        def done(error: Exception | None) -> None:
            found.append((error, threading.get_ident()))
            ends.release()

        copies.up(source, target, [] if mark is None else [mark], done)
    for _ in range(16):
        assert ends.acquire(timeout=SOON)
    assert [error for error, _ in found] == [None] * 16
    assert {thread for _, thread in found}.isdisjoint({threading.get_ident()})
    assert torch.equal(target.cpu(), torch.full((64 * KiB,), 16, dtype=torch.uint8))
    assert copies.copied.size == 1024 * KiB


def test_a_copy_that_does_not_fit_is_an_error(device: Device, copies: Copies) -> None:
    found: list[Exception | None] = []
    told = threading.Event()

    def done(error: Exception | None) -> None:
        found.append(error)
        told.set()

    copies.up(torch.zeros(8, dtype=torch.uint8), device.arena(4096).tensor(0, torch.uint8, (4,)), [], done)
    assert told.wait(SOON)
    assert isinstance(found[0], RuntimeError)


def test_a_copy_into_a_tensor_of_an_inference_mode(device: Device, copies: Copies) -> None:
    found: list[Exception | None] = []
    told = threading.Event()

    def done(error: Exception | None) -> None:
        found.append(error)
        told.set()

    arena = device.arena(4096)
    with torch.inference_mode():
        target = arena.tensor(0, torch.uint8, (8,)).clone()
    copies.up(torch.full((8,), 3, dtype=torch.uint8), target, [], done)
    assert told.wait(SOON)
    assert found == [None]
    assert bool((target == 3).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_waits_for_what_is_computed_on_its_place() -> None:
    device = Cuda("cuda")
    copies, told = device.copies(), threading.Event()
    big = torch.zeros(4096, 4096, device=device.compute)
    place = torch.ones(1 << 20, dtype=torch.uint8, device=device.compute)
    for _ in range(50):
        big = big @ big
    seen = place.clone()
    copies.up(torch.full((1 << 20,), 2, dtype=torch.uint8), place, [device.mark()], lambda _: told.set())
    assert told.wait(SOON)
    assert bool((seen == 1).all()), "computed on what came after"
    assert bool((place == 2).all())
    copies.close()


def test_no_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoDevice, match="no CUDA"):
        Cuda("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NoDevice, match="there is no cuda:3: this machine has 1"):
        Cuda("cuda:3")


class TestEmulated:
    def test_it_has_as_much_memory_as_it_is_given(self) -> None:
        device = Emulated(size=4096)
        assert device.memory() == (4096, 4096)
        assert device.arena(4096).length == 4096
        with pytest.raises(MemoryError):
            device.arena(4097)

    def test_it_computes_at_once(self) -> None:
        assert Emulated().mark() is None

    def test_it_copies_at_the_rate_it_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a clock that only sleep moves: 3 copies of 100 bytes at 50 bytes a second, and one after a pause."""
        now, ends, told = [0.0], [], threading.Semaphore(0)

        class Clock:
            monotonic = staticmethod(lambda: now[0])

            @staticmethod
            def sleep(seconds: float) -> None:
                now[0] += seconds

        monkeypatch.setattr(emulated, "time", Clock)
        copies, gate = Emulated(rate=50.0).copies(), threading.Event()
        copies.later(lambda: gate.wait(SOON) and None)
        source, target = torch.ones(100, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)

        def done(_: Exception | None) -> None:
            ends.append(now[0])
            told.release()

        for _ in range(3):
            copies.up(source, target, [], done)
        gate.set()
        for _ in range(3):
            assert told.acquire(timeout=SOON)
        now[0] += 100.0
        copies.up(source, target, [], done)
        assert told.acquire(timeout=SOON)
        copies.close()
        assert ends == [2.0, 4.0, 6.0, 108.0]


class _Runtime:
    """What CUDA's runtime is told of page-locked memory."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def cudaHostRegister(self, address: int, length: int, flags: int) -> int:
        self.calls.append(("register", address))
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0


def test_pages_are_locked_as_long_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No longer, also where somebody keeps a closed arena: what lies at their addresses next is not locked."""
    runtime, current = _Runtime(), []

    @contextlib.contextmanager
    def made_current(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", made_current)
    device = Cuda.__new__(Cuda)
    device.compute = torch.device("cuda", 1)
    arena = Arena(64 * KiB)
    tensor = arena.tensor(0, torch.uint8, (64 * KiB,))
    assert device.lock_pages(arena)
    assert current == [device.compute], "another device would not know of them"
    arena.close()
    assert runtime.calls == [("register", arena.address)]
    del tensor
    assert runtime.calls == [("register", arena.address), ("unregister", arena.address)]
