"""Three tiers when something goes wrong: nothing is computed on what did not arrive, who waits is told."""

import contextlib
import errno
import gc
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.kernels.devices.copies import Copies, WaitForCopy
from penstock.kernels.devices.emulated import Emulated
from penstock.kernels.waiting import no_waiting
from penstock.runtime.loading.openings import device as opening
from penstock.runtime.loading.openings.device import check_formats
from penstock.runtime.tiers.embedding_rows import RowReader
from penstock.runtime.tiers.views import SlotViews
from penstock.tiering.errors import BundleCorrupt, Closed, ConfigError, DeviceFull, DeviceUnavailable
from penstock.tiering.store.bundle.manifest import Block
from tests.support.backends import ThreadsBackend
from tests.support.device_tiers import check, equal, least, on_device, reference, tight
from tests.support.engines import engine_of
from tests.support.logits import logits
from tests.support.rig import SOON, Worker
from tests.support.tiny_models import save_tiny


class BusError(OSError): ...


class Bus(Emulated):
    """Emulated; ``fails`` says of each copy, by its number, whether it fails."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fails: Callable[[int], bool] = lambda number: False
        self.count = 0

    def copies(self) -> Copies:
        def begin(source: torch.Tensor, target: torch.Tensor, after: Sequence[None]) -> WaitForCopy:
            self.count += 1
            fails = self.fails(self.count)

            def wait() -> None:
                if fails:
                    raise BusError("the bus failed")
                target.copy_(source)

            return wait

        return Copies(begin)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Bus:
    """The device that every model is loaded on."""
    bus = Bus()
    monkeypatch.setattr("penstock.runtime.loading.load.open_device", lambda settings: bus)
    return bus


@pytest.fixture(scope="module")
def expected(tiny_moe_folder: Path) -> list[torch.Tensor]:
    return logits(reference(tiny_moe_folder))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def damage(folder: Path, store: Path, which: Callable[[Block], bool]) -> Block:
    """Alter a byte of the first such block of the bundle; the block."""
    with on_device(folder, store, device_memory="64MiB", host_memory="64MiB") as model:
        bundle = engine_of(model).bundle
        block = next(filter(which, bundle.manifest.blocks))
        path = bundle.paths[block.extent.file]
    with path.open("r+b") as file:
        file.seek(block.extent.offset + 5)
        (byte,) = file.read(1)
        file.seek(block.extent.offset + 5)
        file.write(bytes([byte ^ 1]))
    return block


# --- flash ----------------------------------------------------------------------------------------------------------


def test_a_damaged_block_is_named_and_never_computed_on(tiny_moe_folder: Path, tmp_path: Path) -> None:
    block = damage(tiny_moe_folder, tmp_path, lambda block: block.id.kind == "expert")
    with tight(tiny_moe_folder, tmp_path) as model:
        for _ in range(2):
            with pytest.raises(BundleCorrupt, match="is altered") as refused:
                logits(model)
            assert str(block.id) in str(refused.value)
        check(model)


def test_a_damaged_block_that_stays_on_the_device_is_named(tiny_moe_folder: Path, tmp_path: Path) -> None:
    block = damage(tiny_moe_folder, tmp_path, lambda block: block.resident)
    with pytest.raises(BundleCorrupt, match="is altered") as refused:
        on_device(tiny_moe_folder, tmp_path, device_memory="64MiB", host_memory="64MiB")
    assert str(block.id) in str(refused.value)


def test_an_error_of_the_drive_in_passing(
    tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, counts = threading.Lock(), Counter[str]()

    def fail_sometimes(got: int) -> int:
        name = (
            threading.current_thread().name.removeprefix("penstock-").split("-")[0]
        )  # what opens files has no second chance
        with lock:
            counts[name] += 1
            fails = counts[name] % 10 == 1 and name in ("io", "bypass")  # opening a file has no second chance
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return got

    with tight(tiny_moe_folder, store) as model:
        bundle = engine_of(model).bundle.folder  # nothing but blocks is read of it
    with monkeypatch.context() as patch:
        ThreadsBackend().fault(patch, fail_sometimes)
        with tight(bundle, store, io_backend="threads", io_depth=1) as model:
            assert equal(expected, model)
            check(model)
    assert counts["io"] > 10
    assert counts["bypass"] > 0


# --- copies ---------------------------------------------------------------------------------------------------------


def test_a_copy_that_fails_once(tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor], bus: Bus) -> None:
    with tight(tiny_moe_folder, store) as model:
        for after in (1, 7, 20):
            failing = bus.count + after
            bus.fails = lambda number, failing=failing: number == failing
            with contextlib.suppress(BusError):  # or nobody waited for what it was to bring
                assert equal(expected, model)
            assert bus.count >= failing
            check(model)
            assert equal(expected, model)


def test_copies_that_fail_always(tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor], bus: Bus) -> None:
    with tight(tiny_moe_folder, store) as model:
        bus.fails = lambda number: True
        for _ in range(2):
            with pytest.raises(BusError):
                logits(model)
        check(model)
        bus.fails = lambda number: False
        assert equal(expected, model)


def test_copies_that_fail_while_the_model_is_loaded(tiny_moe_folder: Path, store: Path, bus: Bus) -> None:
    before = threads()
    bus.fails = lambda number: True
    with pytest.raises(BusError):
        on_device(tiny_moe_folder, store, device_memory="64MiB", host_memory="64MiB")
    assert threads() <= before, "what was opened is closed"


# --- the end of a model ---------------------------------------------------------------------------------------------


def threads() -> set[threading.Thread]:
    """Those that belong to device tiers."""
    return {thread for thread in threading.enumerate() if thread.name in ("penstock-copies", "penstock-bypass")}


def test_closed_while_others_compute(tiny_moe_folder: Path, store: Path) -> None:
    before = threads()
    model = tight(tiny_moe_folder, store)
    started = threading.Semaphore(0)

    def compute() -> None:
        while True:
            logits(model)
            started.release()

    workers = [Worker(compute) for _ in range(2)]
    assert started.acquire(timeout=SOON)
    model.penstock.close()
    errors = [worker.result() for worker in workers]
    assert all(isinstance(error, Closed) for error in errors), errors
    assert threads() <= before


@pytest.mark.parametrize(("owner", "name"), [(SlotViews, "on"), (RowReader, "rows")], ids=["views", "rows"])
def test_what_was_leased_when_the_model_was_closed_is_no_more(
    owner: Any, name: str, tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is gone before anybody had a view on it."""
    model = tight(tiny_moe_folder, store)
    engine = engine_of(model)
    looked_at = getattr(owner, name)

    def close_before(*args: Any, **named: Any) -> Any:
        engine.tier.arena.close()
        for reader in engine.rows.values():
            reader.close()
        return looked_at(*args, **named)

    monkeypatch.setattr(owner, name, close_before)
    with pytest.raises(Closed, match="load it again"):
        logits(model)
    model.penstock.close()


@pytest.mark.parametrize(("device", "budget"), [("cpu", "host_memory"), ("emulated", "device_memory")])
def test_an_embedding_that_is_used_as_a_whole_names_the_budget(
    device: str, budget: str, tmp_path: Path, store: Path
) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    least_device = {"device_memory": least(folder, store, device_memory=1, host_memory="1GiB")}
    options: dict[str, Any] = {"host_memory": "1GiB"} | least_device
    if device == "cpu":
        with pytest.raises(penstock.BudgetTooSmall, match=r"at least (\d+)") as refused:
            on_device(folder, store, device="cpu", host_memory=1)
        options = {"host_memory": int(re.findall(r"at least (\d+)", str(refused.value))[0])}
    with on_device(folder, store, device=device, **options) as model:
        embedding = model.get_input_embeddings()
        model.model.layers[0].register_forward_pre_hook(lambda *_: embedding.weight.sum())
        with pytest.raises(penstock.UnplaceableModule, match=f"embed_tokens.weight is used as a whole.*raise {budget}"):
            logits(model)
        engine_of(model).check_integrity()


def test_a_model_that_nobody_has_any_more(tiny_moe_folder: Path, store: Path) -> None:
    before = threads()
    model = tight(tiny_moe_folder, store)
    logits(model)
    own = threads() - before
    assert len(own) == 2
    del model
    gc.collect()
    for thread in own:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in own)


def test_a_forward_that_breaks_off(tiny_moe_folder: Path, store: Path, expected: list[torch.Tensor]) -> None:
    with tight(tiny_moe_folder, store) as model:

        def stop(*_: object) -> None:
            raise InterruptedError

        hook = model.model.layers[1].mlp.register_forward_pre_hook(stop)
        for _ in range(3):
            with pytest.raises(InterruptedError):
                logits(model)
        hook.remove()
        check(model)
        assert equal(expected, model)
        assert not engine_of(model).bridge._planner.residency.held(threading.get_ident())


def test_leases_that_the_collector_gives_back_wait_for_no_lock(tiny_moe_folder: Path, store: Path) -> None:
    """It may come to them in a thread that has what somebody needs who is in the bridge."""
    with tight(tiny_moe_folder, store) as model:
        bridge = engine_of(model).bridge
        block = next(block for block in engine_of(model).blocks if block.kind == "expert")
        inside, through = threading.Event(), threading.Event()
        leases = [bridge.acquire([block])]

        def hold() -> None:
            with bridge._lock:
                inside.set()
                assert through.wait(SOON)

        def collect() -> None:
            with no_waiting:
                leases.clear()

        holder = Worker(hold)
        assert inside.wait(SOON)
        assert Worker(collect).result() is None
        through.set()
        assert holder.result() is None
        bridge.end()
        check(model)


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": "cpu", "device_memory": "1GiB"}, ConfigError, r"name it in \[compute\] device"),
        ({"device": "emulated"}, ConfigError, r"write how much it may use in \[memory\] device"),
        ({"device": "gpu"}, ConfigError, '"cuda:0"'),
        ({"device": "emulated:fast", "device_memory": "1GiB"}, ConfigError, "emulated:8GB"),
        ({"device_memory": 1 << 50}, DeviceFull, "lower device_memory"),
        ({"device_memory": "1GiB", "kv_device_memory": "1MiB"}, ConfigError, r"set \[kv\] host"),
        ({"device": "cpu", "kv_device_memory": "1MiB"}, ConfigError, r"name it in \[compute\] device"),
    ],
)
def test_settings_that_do_not_go_together(
    tiny_moe_folder: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        on_device(tiny_moe_folder, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists(), "it was packed before"


def test_no_cuda(tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match='write device = "cpu"'):
        on_device(tiny_moe_folder, store, device="cuda:0")


def test_weights_that_a_device_cannot_compute_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GGUF file, which penstock packs as they are; and all that are packed, without Triton."""
    device = Emulated(name="cuda:0")
    check_formats(device, {"q8_0"})
    device.compute = torch.device("cuda", 0)
    check_formats(device, {"int8", "lossless"})
    with pytest.raises(ConfigError, match=r"weights in q6_k, q8_0 cannot .* on cuda:0; write device = \"cpu\""):
        check_formats(device, {"q8_0", "int8", "q6_k"})

    def absent(name: str) -> None:
        raise ImportError("pip install 'penstock[cuda]'")

    monkeypatch.setattr(opening, "find_device_format", absent)
    with pytest.raises(ConfigError, match="pip install"):
        check_formats(device, {"int8"})


def test_more_than_the_device_has(tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.loading.load.open_device", lambda settings: Bus(size=1 << 20))
    with pytest.raises(DeviceFull, match=r"device_memory is 2.00 MiB, but of the 1.00 MiB of emulated 1.00 MiB are"):
        on_device(tiny_moe_folder, store, device_memory="2MiB", host_memory="64MiB")


def test_memory_that_is_taken_meanwhile(
    tiny_moe_folder: Path, store: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threads()

    def arena(length: int) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(bus, "arena", arena)
    with pytest.raises(DeviceFull, match="in one piece"):
        on_device(tiny_moe_folder, store, device_memory="64MiB", host_memory="64MiB")
    assert threads() <= before


def test_too_little_of_either_says_which_and_the_least(tiny_moe_folder: Path, store: Path) -> None:
    floor = least(tiny_moe_folder, store, device_memory=1, host_memory="64MiB")
    with pytest.raises(penstock.BudgetTooSmall, match=f"set device_memory to at least {floor} bytes"):
        on_device(tiny_moe_folder, store, device_memory=floor - 1, host_memory="64MiB")
    under = least(tiny_moe_folder, store, device_memory=floor, host_memory=1)
    with pytest.raises(penstock.BudgetTooSmall, match=f"set host_memory to at least {under} bytes"):
        on_device(tiny_moe_folder, store, device_memory=floor, host_memory=under - 1)
