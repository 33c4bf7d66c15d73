"""What the host can do: limits of control groups (made up, and real ones as root), drive and memory measured."""

import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from penstock.kernels.io.backends import list_usable
from penstock.kernels.io.directio import DirectFile
from penstock.kernels.machine import machine, read_rates
from penstock.kernels.machine.cgroups import MemoryGroup, find_memory_groups, find_processor_quota, read_memory_group
from penstock.kernels.memory.page import PAGE

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
MiB = 1 << 20
UNLIMITED = "9223372036854771712"


def process(folder: Path, groups: str, *mounts: tuple[str, Path, str, str]) -> Path:
    """A /proc/PID of a process in ``groups``; a mount is its root, point, file system and options."""
    folder.mkdir(exist_ok=True)
    (folder / "cgroup").write_text(groups)
    lines = ["22 1 0:21 / /proc rw,relatime shared:1 - proc proc rw"]
    for root, point, kind, options in mounts:
        escaped = str(point).replace(" ", "\\040")
        lines.append(f"31 23 0:28 {root} {escaped} rw,relatime shared:4 master:1 - {kind} cgroup {options}")
    (folder / "mountinfo").write_text("\n".join(lines) + "\n")
    return folder


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".", 1)).write_text(text + "\n")


def test_v1_counts_our_group_and_its_ancestors(tmp_path):
    point = tmp_path / "memory"
    group(point, memory__limit_in_bytes=UNLIMITED, memory__usage_in_bytes="900")
    group(point / "outer", memory__limit_in_bytes="500", memory__usage_in_bytes="300")
    stat = "cache 9\ninactive_file 9\ntotal_inactive_file 35\ntotal_active_file 8\ntotal_mapped_file 3"
    group(point / "outer/own", memory__limit_in_bytes="700", memory__usage_in_bytes="100", memory__stat=stat)
    group(point / "other", memory__limit_in_bytes="1", memory__usage_in_bytes="1")
    ours = process(
        tmp_path / "proc",
        "4:memory,hugetlb:/outer/own\n2:cpu:/\n0::/\n",
        ("/", tmp_path / "cpu", "cgroup", "rw,cpu"),
        ("/", point, "cgroup", "rw,memory,hugetlb"),
    )
    assert find_memory_groups(ours) == [
        MemoryGroup(point / "outer/own", 700, 60),
        MemoryGroup(point / "outer", 500, 300),
        MemoryGroup(point, int(UNLIMITED), 900),
    ]


def test_v2_counts_our_group_and_its_ancestors(tmp_path):
    point = tmp_path / "with blank"
    group(point, cgroup__procs="1")
    group(point / "user.slice", memory__max="800", memory__current="300", memory__high="max")
    stat = "anon 5\ninactive_file 20\nactive_file 14\nfile_mapped 4"
    group(point / "user.slice/a:b", memory__max="max", memory__high="600", memory__current="200", memory__stat=stat)
    ours = process(tmp_path / "proc", "0::/user.slice/a:b\n", ("/", point, "cgroup2", "rw"))
    assert find_memory_groups(ours) == [
        MemoryGroup(point / "user.slice/a:b", 600, 170),
        MemoryGroup(point / "user.slice", 800, 300),
    ]


@pytest.mark.parametrize(
    ("path", "root", "found"),
    [
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc/job", "/docker/abc", "job"),
        ("/", "/", ""),
        ("/../other", "/", ""),
        ("/docker/abc", "/docker/xyz", ""),
    ],
)
def test_containers_mount_part_of_the_tree(tmp_path, path, root, found):
    point = tmp_path / "mounted"
    group(point / found, memory__max="77", memory__current="7")
    ours = process(tmp_path / "proc", f"0::{path}\n", (root, point, "cgroup2", "rw"))
    assert find_memory_groups(ours) == [MemoryGroup(point / found, 77, 7)]


def test_no_control_groups_at_all(tmp_path):
    assert find_memory_groups(tmp_path) == []
    assert find_processor_quota(tmp_path) is None


def test_processor_quota_of_the_tightest_group(tmp_path):
    point = tmp_path / "v2"
    group(point / "a/b", cpu__max="max 100000")
    group(point / "a", cpu__max="150000 100000")
    ours = process(tmp_path / "proc", "0::/a/b\n", ("/", point, "cgroup2", "rw"))
    assert find_processor_quota(ours) == 1.5
    point = tmp_path / "v1"
    group(point, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    ours = process(tmp_path / "proc", "3:cpu,cpuacct:/x\n", ("/", point, "cgroup", "rw,cpuacct,cpu"))
    assert find_processor_quota(ours) is None
    group(point / "x", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert find_processor_quota(ours) == 0.5


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (0.5, 1), (1.5, 2), (64.0, 4)])
def test_cores_heed_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6, 9})
    monkeypatch.setattr(machine, "find_processor_quota", lambda: quota)
    assert machine.count_usable_cores() == cores


def test_memory_is_the_least_of_machine_and_groups(monkeypatch):
    groups = [MemoryGroup(Path("own"), 300 * MiB, 100 * MiB), MemoryGroup(Path("outer"), 250 * MiB, 240 * MiB)]
    monkeypatch.setattr(machine, "find_memory_groups", lambda: groups)
    assert machine.read_total_memory() == 250 * MiB
    assert machine.read_available_memory() == 10 * MiB
    groups.append(MemoryGroup(Path("over"), 5 * MiB, 6 * MiB))
    assert machine.read_available_memory() == 0
    groups.clear()
    assert machine.read_total_memory() == psutil.virtual_memory().total
    groups.append(MemoryGroup(Path("root"), int(UNLIMITED), 0))
    assert machine.read_total_memory() == psutil.virtual_memory().total
    assert 0 < machine.read_available_memory() < machine.read_total_memory()


@pytest.fixture
def capped_group():
    """The inner of two nested control groups, the outer of which limits memory to 256 MiB: its folder."""
    if os.geteuid() != 0:
        pytest.skip("making a control group needs root")
    first = V1 if (V1 / "memory.limit_in_bytes").exists() else V2
    outer = first / f"penstock-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        try:
            if first == V2:
                (V2 / "cgroup.subtree_control").write_text("+memory")
            outer.mkdir()
            if first == V2:
                (outer / "cgroup.subtree_control").write_text("+memory")
            (outer / ("memory.max" if first == V2 else "memory.limit_in_bytes")).write_text(str(256 * MiB))
            inner.mkdir()
        except OSError as error:
            pytest.skip(f"this system lets us make no memory control group: {error}")
        yield inner
    finally:
        for folder in (inner, outer):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()


def take(size: int) -> tuple[int, int, int]:
    """Total memory, available memory, and what is available when ``size`` bytes more are in use."""
    before = machine.read_available_memory()
    block = bytearray(b"\x01") * size
    after = machine.read_available_memory()
    assert len(block) == size
    return machine.read_total_memory(), before, after


def read_through_the_page_cache(path: Path) -> tuple[int, int]:
    """What is available before and after a file has come into the page cache. The kernel counts what of that gives way
    some seconds late."""
    before = machine.read_available_memory()
    path.read_bytes()
    until = time.monotonic() + 20
    while (after := machine.read_available_memory()) < before - 16 * MiB and time.monotonic() < until:
        time.sleep(0.1)
    return before, after


def test_a_real_control_group_limits_memory(capped_group, tmp_path):
    path = tmp_path / "cached"
    path.write_bytes(bytes(48 * MiB))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)

    def join() -> None:
        (capped_group / "cgroup.procs").write_text(str(os.getpid()))

    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), join) as pool:
        total, before, after = pool.submit(take, 64 * MiB).result(60)
        assert total == 256 * MiB
        assert 128 * MiB < before <= 256 * MiB
        assert 60 * MiB < before - after < 80 * MiB
        # Page cache is charged to the group too, but it gives way.
        before, after = pool.submit(read_through_the_page_cache, path).result(60)
        assert abs(before - after) < 16 * MiB
    assert machine.read_total_memory() > 256 * MiB


def test_the_drive_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)
    seen = []
    real_begin = DirectFile.begin

    def begin(file, segments):
        seen.append((segments[0].offset, len(segments[0].buffer), file.direct))
        assert list(tmp_path.iterdir()) == [], "the trial file has a name while it is read"
        return real_begin(file, segments)

    monkeypatch.setattr(DirectFile, "begin", begin)
    descriptors = len(os.listdir("/proc/self/fd"))
    report = machine.measure_drive(
        tmp_path, sizes=(PAGE, 8 * PAGE), depths=(1, 3), backends=("threads",), seconds_each=0.02
    )
    assert [(rate.size, rate.depth) for rate in report.rates] == [(PAGE, 1), (PAGE, 3), (8 * PAGE, 1), (8 * PAGE, 3)]
    assert all(rate.bytes_per_second > 0 for rate in report.rates)
    assert report.best in report.rates
    assert report.file_bytes == 1 * MiB
    assert {direct for _, _, direct in seen} == {report.direct}
    assert all(offset % PAGE == 0 and offset + length <= 1 * MiB for offset, length, _ in seen)
    assert len({offset for offset, _, _ in seen}) > 10, "the offsets are not random"
    assert json.loads(json.dumps(dataclasses.asdict(report)))["folder"] == str(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list(tmp_path.iterdir()) == []


def test_every_backend_that_works_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)
    report = machine.measure_drive(tmp_path, sizes=(PAGE, 8 * PAGE), depths=(1, 2), seconds_each=0.01)
    with DirectFile(__file__) as file:
        names = list_usable(file) if report.direct else list_usable()
    assert names[0] == "threads"
    assert [rate.backend for rate in report.rates] == list(names) * 4
    assert report.direct == ("buffered" in names)


def test_rates_are_bytes_over_time(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)
    now = iter([99.0, 100.0, 100.1, 102.0, 104.0])
    monkeypatch.setattr(read_rates.time, "perf_counter", lambda: next(now))
    report = machine.measure_drive(
        tmp_path, sizes=(2 * PAGE,), depths=(1,), backends=("threads",), seconds_each=1.0, rounds=1
    )
    # Started at 100; one read before 100.1 and one before 102, which is past the second; all done at 104.
    assert report.rates[0].bytes_per_second == 2 * 2 * PAGE / 4


def test_the_best_round_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)
    rates = iter([5.0, 9.0, 7.0])
    monkeypatch.setattr(read_rates, "_rate", lambda *_: next(rates))
    report = machine.measure_drive(tmp_path, sizes=(PAGE,), depths=(1,), backends=("threads",), rounds=3)
    assert [rate.bytes_per_second for rate in report.rates] == [9.0]


def test_a_drive_that_takes_too_long_is_measured_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)
    now = [0.0]

    def slow(*_):
        now[0] += 10.0
        return 1.0

    monkeypatch.setattr(read_rates.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(read_rates, "_rate", slow)
    report = machine.measure_drive(
        tmp_path, sizes=(PAGE, 2 * PAGE), depths=(1, 2, 4), backends=("threads",), seconds_each=2.0
    )
    assert [(rate.size, rate.depth) for rate in report.rates] == [(PAGE, 1), (PAGE, 2), (PAGE, 4)]


def test_a_full_drive_is_measured_in_less_or_not_at_all(tmp_path, monkeypatch):
    def disk_usage(_):
        return shutil_usage(total=1 << 40, used=0, free=free)

    shutil_usage = type(machine.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(machine.shutil, "disk_usage", disk_usage)
    free = 7 * 8 * PAGE
    report = machine.measure_drive(tmp_path, sizes=(8 * PAGE,), depths=(1,), seconds_each=0.0)
    assert report.file_bytes == 3 * 8 * PAGE
    free = 2 * 8 * PAGE - 1
    with pytest.raises(OSError, match=str(2 * 8 * PAGE)) as caught:
        machine.measure_drive(tmp_path, sizes=(8 * PAGE,), depths=(1,), seconds_each=0.0)
    assert caught.value.errno == errno.ENOSPC


def test_a_failing_drive_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_FILE", 1 * MiB)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for port in ("pwrite", "fdatasync", "preadv"):
        with monkeypatch.context() as patch:
            patch.setattr(os, port, fail)
            with pytest.raises(OSError) as caught:
                machine.measure_drive(tmp_path, sizes=(PAGE,), depths=(1, 2), seconds_each=0.0)
        assert caught.value.errno == errno.EIO
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        machine.measure_drive(tmp_path / "absent", sizes=(PAGE,), depths=(1,), seconds_each=0.0)


def test_memory_speed_is_plausible(monkeypatch):
    monkeypatch.setattr(machine, "_TRIAL_MEMORY", 8 * MiB)
    assert all(1e7 < rate < 1e14 for rate in machine.measure_memory())
    monkeypatch.setattr(machine, "read_available_memory", lambda: 0)
    assert min(machine.measure_memory()) > 0


def test_the_report_is_plain_data():
    report = machine.describe()
    assert report.processor
    assert 1 <= report.cores <= (os.cpu_count() or 1)
    assert 0 < report.available_memory <= report.total_memory
    assert json.loads(json.dumps(dataclasses.asdict(report)))["torch"] == report.torch


@pytest.mark.parametrize(
    ("text", "name", "flag"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU @ 2: GHz\nflags\t\t: fpu avx2 amx_bf16\n\n"
            "processor\t: 1\nmodel name\t: other\nflags\t: fpu\n",
            "Some CPU @ 2: GHz",
            "amx_bf16",
        ),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n", "", "bf16"),
    ],
)
def test_processor_names_and_flags(tmp_path, text, name, flag):
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.read_processor(tmp_path / "cpuinfo")[0] == name
    assert flag in machine.read_processor(tmp_path / "cpuinfo")[1]


def test_huge_page_mode(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert machine._huge_pages(tmp_path / "enabled") == "madvise"
    assert machine._huge_pages(tmp_path / "absent") == "absent"


def test_the_meter_reads_the_groups_that_limit_us_and_looks_for_them_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight, loose, searches = tmp_path / "tight", tmp_path / "loose", []
    for folder, limit in ((tight, 3 << 20), (loose, 1 << 62)):
        folder.mkdir()
        (folder / "memory.max").write_text(str(limit))
        (folder / "memory.current").write_text(str(1 << 20))

    def groups() -> list[MemoryGroup]:
        searches.append(1)
        return [group for folder in (tight, loose) if (group := read_memory_group(folder)) is not None]

    monkeypatch.setattr(machine, "find_memory_groups", groups)
    meter = machine.MemoryMeter()
    assert meter.memory() == (2 << 20, 3 << 20)
    (tight / "memory.current").write_text(str(4 << 20))
    assert meter.memory() == (0, 3 << 20), "over the limit, nothing is left"
    (tight / "memory.max").write_text("max")
    available, total = meter.memory()
    assert total > 3 << 20
    assert 0 < available <= total
    for _ in range(20):
        meter.memory()
    assert len(searches) == 1
