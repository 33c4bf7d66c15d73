"""Measurements of this host: drive, memory, processor."""

import errno
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import torch

from ..io.backends import choose_direct, list_usable
from ..io.directio import DirectFile
from ..io.directwrite import DirectWriter
from ..memory.arena import Arena
from ..memory.page import PAGE
from .cgroups import find_memory_groups, find_processor_quota, read_memory_group
from .read_rates import ReadRate, read_rates

_TRIAL_FILE = 256 << 20
_TRIAL_MEMORY = 256 << 20
# Features by which torch's products and ours choose their code.
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("amx_fp16", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
)


@dataclass(frozen=True, slots=True)
class DriveReport:
    """Read rates of the drive that holds ``folder``. ``direct`` says whether reads bypass the page cache."""

    folder: str
    direct: bool
    file_bytes: int
    rates: tuple[ReadRate, ...]

    @property
    def best(self) -> ReadRate:
        """The fastest of the rates."""
        return max(self.rates, key=lambda rate: rate.bytes_per_second)


@dataclass(frozen=True, slots=True)
class MachineReport:
    """The host as this process sees it.

    Memory is in bytes. ``cores`` and memory respect affinity and control groups.
    """

    processor: str
    cores: int
    instruction_sets: tuple[str, ...]
    torch_capability: str
    torch_threads: int
    total_memory: int
    available_memory: int
    huge_pages: str
    system: str
    python: str
    torch: str
    transformers: str | None


def measure_drive(
    folder: Path,
    *,
    sizes: Sequence[int] = (4096, 131072, 1 << 20, 2 << 20, 4 << 20, 8 << 20),
    depths: Sequence[int] = (1, 2, 4, 8),
    backends: Sequence[str] | None = None,
    seconds_each: float = 0.12,
    rounds: int = 3,
    file_bytes: int | None = None,
) -> DriveReport:
    """Measure random reads of a temporary file in ``folder``, for each size, depth and backend.

    ``sizes`` are in bytes, PAGE multiples. ``depths`` are reads in flight. ``backends`` are names in BACKENDS, or None
    for all that work here. The offsets are page-aligned. The file has ``file_bytes`` (None: 256 MiB), or half of the
    free space if that is less, and is removed afterwards.

    Raises OSError when the folder is absent or not writable, and with ENOSPC when it has no room for two of the largest
    reads. Raises BackendUnavailable.
    """
    step = max(sizes)
    room = min(max(file_bytes or _TRIAL_FILE, step), shutil.disk_usage(folder).free // 2) // step * step
    if room == 0:
        raise OSError(errno.ENOSPC, f"measuring the drive needs {2 * step} bytes free", str(folder))
    arena = Arena(step)
    # Random content, which no drive can compress.
    arena.tensor(0, torch.uint8, (arena.length,)).random_()
    with ExitStack() as opened:
        files: dict[str, list[DirectFile]] = {}
        with _trial_file(folder, arena.view(0, step), room // step) as path:
            plain = opened.enter_context(DirectFile(path))
            for backend in list_usable(plain) if backends is None else backends:
                ask = choose_direct(backend)
                files[backend] = [plain if ask is None else opened.enter_context(DirectFile(path, direct=ask))]
        arena.close()
        rates = read_rates(files, [(size, depth) for size in sizes for depth in depths], seconds_each, rounds=rounds)
        return DriveReport(str(folder), plain.direct, plain.length, tuple(rates))


@contextmanager
def _trial_file(folder: Path, content: memoryview, copies: int) -> Iterator[Path]:
    """Create a file of ``copies`` of ``content``.

    Its name is removed at the end of the block, the file when it is closed.
    """
    descriptor, name = tempfile.mkstemp(prefix=".penstock-trial-", dir=folder)
    os.close(descriptor)
    try:
        with DirectWriter(name) as writer:
            for _ in range(copies):
                writer.write(content)
            writer.sync()
        yield Path(name)
    finally:
        os.unlink(name)


def measure_memory() -> list[float]:
    """Measure sequential reads of memory with torch's threads: bytes per second of each of several passes. The best
    says what the memory can do."""
    length = max(PAGE, min(_TRIAL_MEMORY, read_available_memory() // 4) // PAGE * PAGE)
    numbers = Arena(length).tensor(0, torch.float32, (length // 4,)).fill_(1.0)
    found = []
    for _ in range(7):
        start = time.perf_counter()
        numbers.sum()
        found.append(numbers.nbytes / (time.perf_counter() - start))
    return found


def read_available_memory() -> int:
    """Return the bytes that this process may still take before the machine, or one of its control groups, runs out."""
    room = [group.limit - group.used for group in find_memory_groups()]
    return max(0, min([psutil.virtual_memory().available, *room]))


def read_total_memory() -> int:
    """Return the bytes of memory of the machine, or of this process's tightest control group."""
    return min([psutil.virtual_memory().total, *(group.limit for group in find_memory_groups())])


class MemoryMeter:
    """Available and total memory for frequent callers: it looks for our control groups only now and then."""

    _EVERY = 32

    def __init__(self) -> None:
        self._looks, self._folders = 0, list[Path]()

    def memory(self) -> tuple[int, int]:
        """Return the bytes of ``read_available_memory`` and ``read_total_memory``.

        New groups and new limits show a little later.
        """
        whole = psutil.virtual_memory()
        if self._looks % self._EVERY == 0:
            self._folders = [group.folder for group in find_memory_groups() if group.limit < whole.total]
        self._looks += 1
        groups = [group for group in map(read_memory_group, self._folders) if group is not None]
        available = min([whole.available, *(group.limit - group.used for group in groups)])
        return max(0, available), min([whole.total, *(group.limit for group in groups)])


def count_usable_cores() -> int:
    """Return the number of processors that this process may use.

    This is the least of its affinity and its control groups' quota, rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = find_processor_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def describe() -> MachineReport:
    """Return the names and sizes of this host. It measures nothing."""
    name, flags = read_processor(Path("/proc/cpuinfo"))
    try:
        transformers: str | None = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        transformers = None
    return MachineReport(
        processor=name or platform.processor() or platform.machine(),
        cores=count_usable_cores(),
        instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        torch_threads=torch.get_num_threads(),
        total_memory=read_total_memory(),
        available_memory=read_available_memory(),
        huge_pages=_huge_pages(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers,
    )


def read_processor(information: Path) -> tuple[str, frozenset[str]]:
    """Return the name of the first processor in ``information`` ("" if it has none) and its feature flags.

    Only Linux has such a file.
    """
    fields: dict[str, str] = {}
    for line in information.read_text().splitlines() if information.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields.get("model name", ""), frozenset(fields.get("flags", fields.get("features", "")).split())


def _huge_pages(setting: Path) -> str:
    """Return the kernel's mode of huge pages: "always", "madvise", "never", or "absent"."""
    try:
        return setting.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "absent"
