"""How a drive is read: measured once, kept, and never taken from a file that says something else."""

import dataclasses
import itertools
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import penstock
from penstock.kernels.io import backends
from penstock.kernels.io.reading import BackendUnavailable, Threads
from penstock.kernels.machine import read_rates
from penstock.kernels.machine.read_rates import ReadRate
from penstock.runtime.config.settings import Io
from penstock.runtime.machine import drive_rates_file, reading
from penstock.tiering.errors import ConfigError
from penstock.tiering.policy.drive_reading import UNMEASURED, Reading
from penstock.tiering.units import PAGE, MiB
from tests.support.engines import engine_of
from tests.support.logits import least_budget, logits
from tests.support.timings import measured

RATES = [ReadRate(MiB, depth, 1e9 * depth) for depth in (1, 2, 4, 8)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's file, not yet there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "penstock" / "drives.json"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Data files that are worth measuring, in reads of up to 8 pages."""
    monkeypatch.setattr(reading, "WORTH_MEASURING", 1)
    monkeypatch.setattr(reading, "BRIEF_CELLS", ((PAGE, 1), (8 * PAGE, 2)))
    monkeypatch.setattr(reading, "BRIEF_SECONDS", 0.02)
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * 1e-4)  # however busy this machine is
    monkeypatch.setattr(read_rates, "time", clock)
    files = [tmp_path / f"data-{number}" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(os.urandom((number + 7) * PAGE))
    return files


@pytest.fixture
def no_uring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise BackendUnavailable("io_uring cannot be used here: a test forbids it")

    monkeypatch.setattr(backends, "probe", refuse)


# --- the file -------------------------------------------------------------------------------------------------------


def test_rates_are_kept_for_this_drive_and_for_the_owner_only(tmp_path: Path, cache: Path) -> None:
    assert drive_rates_file.rates(tmp_path) == []
    assert drive_rates_file.keep(tmp_path, measured(RATES)) == cache
    assert drive_rates_file.rates(tmp_path) == RATES
    assert cache.stat().st_mode & 0o777 == 0o600
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    assert list(cache.parent.iterdir()) == [cache]
    drive_rates_file.keep(tmp_path, measured(RATES[:2]))
    assert drive_rates_file.rates(tmp_path) == RATES[:2]
    assert len(json.loads(cache.read_text())["drives"]) == 1
    if Path("/dev/shm").is_dir():
        assert drive_rates_file.rates(Path("/dev/shm")) == []


@pytest.mark.parametrize("what", ["drive", "kernel", "liburing"])
def test_another_drive_kernel_or_library_is_measured_again(tmp_path: Path, cache: Path, what: str) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))
    document = json.loads(cache.read_text())
    document["drives"][0][what] += "x"
    cache.write_text(json.dumps(document))
    assert drive_rates_file.rates(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-10],
        lambda text: "[]",
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace("1048576", "-1"),
        lambda text: text.replace("1048576", '"1048576"'),
        lambda text: text.replace("1000000000.0", "NaN"),
        lambda text: text.replace('"kernel"', '"Kernel"'),
        lambda text: text + " " * (2 << 20),
        lambda text: text.replace("1048576", "1" * 400),
        lambda text: text.replace("1000000000.0", "1e-300"),
        lambda text: "[" * 100_000,
        lambda text: text.replace('"spread": 0.1', '"spread": -0.1'),
        lambda text: text.replace('"when": 1000000000.0', '"when": 1e300'),
        lambda text: text.replace('"when": 1000000000.0', '"when": NaN'),
        lambda text: text.replace('"doubts": []', '"doubts": ["\\u001b[2J"]'),
        lambda text: text.replace('"waited": 0.0', '"waited": 1.0'),
    ],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path: Path, cache: Path, damage) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))
    text = cache.read_text()
    assert damage(text) != text
    cache.write_text(damage(text))
    assert drive_rates_file.rates(tmp_path) == []
    drive_rates_file.keep(tmp_path, measured(RATES))
    assert drive_rates_file.rates(tmp_path) == RATES


def test_a_file_that_others_could_have_written_counts_as_none(tmp_path: Path, cache: Path) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))
    cache.chmod(0o666)
    assert drive_rates_file.rates(tmp_path) == []
    cache.chmod(0o600)
    assert drive_rates_file.rates(tmp_path) == RATES
    elsewhere = cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(elsewhere)
    assert drive_rates_file.rates(tmp_path) == []
    cache.unlink()
    os.mkfifo(cache)
    assert drive_rates_file.rates(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert drive_rates_file.keep(tmp_path, measured(RATES)) is None
    assert drive_rates_file.rates(tmp_path) == []


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for port in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, port, fail)
            assert drive_rates_file.keep(tmp_path, measured(RATES[:1])) is None
        assert drive_rates_file.rates(tmp_path) == RATES
        assert list(cache.parent.iterdir()) == [cache]


def test_the_file_does_not_grow_for_ever(tmp_path: Path, cache: Path) -> None:
    drive_rates_file.keep(tmp_path, measured(RATES))
    document = json.loads(cache.read_text())
    document["drives"] = [document["drives"][0] | {"drive": f"old-{n}"} for n in range(100)]
    cache.write_text(json.dumps(document))
    drive_rates_file.keep(tmp_path, measured(RATES))
    kept = [entry["drive"] for entry in json.loads(cache.read_text())["drives"]]
    assert len(kept) == drive_rates_file.MOST_DRIVES
    assert kept[:-1] == [f"old-{n}" for n in range(100 - len(kept) + 1, 100)]
    assert drive_rates_file.rates(tmp_path) == RATES


def test_many_writers_leave_a_whole_file(tmp_path: Path, cache: Path) -> None:
    writers = [
        threading.Thread(target=drive_rates_file.keep, args=(tmp_path, measured(RATES)), daemon=True) for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert drive_rates_file.rates(tmp_path) == RATES
    assert list(cache.parent.iterdir()) == [cache]


# --- the choice -----------------------------------------------------------------------------------------------------


def test_a_drive_is_measured_once(data: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [file.stat().st_mtime_ns for file in data]
    chosen = reading.reading_of(data, Io(), block=8 * PAGE)
    assert chosen.backend in backends.BACKENDS
    assert chosen.size in (PAGE, 8 * PAGE)
    kept = drive_rates_file.rates(data[0].parent)
    assert {(rate.size, rate.depth) for rate in kept} == set(reading.BRIEF_CELLS)
    assert [file.stat().st_mtime_ns for file in data] == before
    monkeypatch.setattr(reading, "read_rates", lambda *_, **__: pytest.fail("measured again"))
    assert reading.reading_of(data, Io(), block=8 * PAGE) == chosen
    assert reading.kept_reading(data[0].parent, Io(), block=8 * PAGE) == chosen
    cache.write_text("{")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        reading.reading_of(data, Io(), block=8 * PAGE)


def test_small_bundles_and_decided_users_are_not_measured(data: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "read_rates", lambda *_, **__: pytest.fail("measured"))
    both = Io(backend="threads", depth=3)
    assert reading.reading_of(data, both, block=MiB) == Reading("threads", UNMEASURED.size, 3)
    monkeypatch.setattr(reading, "WORTH_MEASURING", 1 << 30)
    assert reading.reading_of(data, Io(), block=MiB) == UNMEASURED
    assert reading.reading_of(data, Io(depth=9), block=MiB) == dataclasses.replace(UNMEASURED, depth=9)


def test_what_is_kept_and_what_the_user_wants_go_together(data: list[Path]) -> None:
    rates = [dataclasses.replace(rate, backend=backend) for backend in ("threads", "buffered") for rate in RATES]
    rates += [ReadRate(4 * MiB, 2, 9e9, "buffered")]
    drive_rates_file.keep(data[0].parent, measured(rates))
    assert reading.reading_of(data, Io(), block=MiB) == Reading("threads", MiB, 8)
    assert reading.reading_of(data, Io(depth=3), block=MiB) == Reading("threads", MiB, 3)
    assert reading.reading_of(data, Io(backend="buffered"), block=MiB) == Reading("buffered", 4 * MiB, 2)


def test_io_uring_that_is_forbidden(data: list[Path], no_uring: None) -> None:
    """auto falls back to threads, and says nothing; who asked for it is told."""
    drive_rates_file.keep(
        data[0].parent,
        measured(RATES + [dataclasses.replace(r, backend="io_uring", bytes_per_second=9e9) for r in RATES]),
    )
    assert reading.reading_of(data, Io(), block=MiB) == Reading("threads", MiB, 8)
    for io in (Io(backend="io_uring"), Io(backend="io_uring", depth=2)):
        with pytest.raises(ConfigError, match=r'a test forbids it; write \[io\] backend = "auto" or "threads"'):
            reading.reading_of(data, io, block=MiB)
    with pytest.raises(ConfigError, match="forbids"):
        reading.open_reader(Reading("io_uring", MiB, 2))


def test_forbidden_io_uring_is_not_measured(data: list[Path], no_uring: None) -> None:
    reading.reading_of(data, Io(), block=MiB)
    assert "io_uring" not in {rate.backend for rate in drive_rates_file.rates(data[0].parent)}


def test_a_drive_that_fails_while_it_is_measured_is_read_all_the_same(
    data: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Threads:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(read_rates, "_rate", fail)
    assert reading.reading_of(data, Io(), block=MiB) == UNMEASURED
    assert drive_rates_file.rates(data[0].parent) == []


def test_a_store_in_memory_is_read_somehow(data: list[Path]) -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("there is no /dev/shm")
    copy = folder / f"penstock-test-{os.getpid()}"
    try:
        copy.write_bytes(os.urandom(64 * PAGE))
        chosen = reading.reading_of([copy], Io(), block=8 * PAGE)
        with reading.DirectFile(copy, direct=backends.choose_direct(chosen.backend)) as file:
            assert chosen.backend in (*backends.list_usable(file), "buffered")
    finally:
        copy.unlink(missing_ok=True)


# --- a model --------------------------------------------------------------------------------------------------------


def budget(folder: Path, store: Path) -> dict[str, Any]:
    return {"store": store, "host_memory": least_budget(folder, store), "attn_implementation": "eager"}


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_every_backend_brings_the_same_bits(backend: str, tiny_moe_folder: Path, store: Path) -> None:
    if backend == "io_uring" and backend not in backends.list_usable():
        pytest.skip("io_uring cannot be used here")
    with penstock.load(tiny_moe_folder, **budget(tiny_moe_folder, store)) as model:
        expected = logits(model)
    with penstock.load(tiny_moe_folder, io_backend=backend, **budget(tiny_moe_folder, store)) as model:
        assert model.penstock.reading.backend == backend
        assert all(map(torch.equal, logits(model), expected))
        assert model.penstock.stats().flash_bytes_read > 0


def test_auto_reads_through_the_page_cache_where_that_was_faster(tiny_moe_folder: Path, store: Path) -> None:
    with penstock.load(tiny_moe_folder, **budget(tiny_moe_folder, store)) as model:
        assert model.penstock.reading == UNMEASURED
        expected, bundle = logits(model), model.penstock.bundle
    slower = [dataclasses.replace(rate, bytes_per_second=rate.bytes_per_second / 2) for rate in RATES]
    drive_rates_file.keep(bundle, measured(slower + [dataclasses.replace(rate, backend="buffered") for rate in RATES]))
    descriptors = len(os.listdir("/proc/self/fd"))
    with penstock.load(tiny_moe_folder, **budget(tiny_moe_folder, store)) as model:
        assert model.penstock.reading == Reading("buffered", MiB, 8)
        assert not engine_of(model).bundle.direct
        assert all(map(torch.equal, logits(model), expected))
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_io_uring_asked_for_in_vain_is_one_clear_error(tiny_moe_folder: Path, store: Path, no_uring: None) -> None:
    with pytest.raises(ConfigError, match=r"a test forbids it; write \[io\] backend"):
        penstock.load(tiny_moe_folder, io_backend="io_uring", **budget(tiny_moe_folder, store))
    with penstock.load(tiny_moe_folder, **budget(tiny_moe_folder, store)) as model:
        assert model.penstock.reading.backend == "threads"
