"""What the tests of kernels share: a data file with known content, readers of it, and a look into the page cache."""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from penstock.kernels.io.directio import DirectFile
from penstock.kernels.io.reading import Reader
from tests.support.backends import BACKENDS, Backend


@pytest.fixture
def cached_bytes(tmp_path: Path) -> Callable[[Path], int]:
    """A function that says how many bytes of a file are in the page cache; skips where a file is always in memory."""
    mounts = [disk for disk in psutil.disk_partitions(all=True) if tmp_path.is_relative_to(disk.mountpoint)]
    if max(mounts, key=lambda disk: len(disk.mountpoint)).fstype in ("tmpfs", "ramfs"):
        pytest.skip("the folder for temporary files is in memory: its files cannot leave the page cache")
    libc = ctypes.CDLL(None)

    def measure(path: Path) -> int:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
            anchor = ctypes.c_char.from_buffer(mapped)
            address = ctypes.c_void_p(ctypes.addressof(anchor))
            assert libc.mincore(address, ctypes.c_size_t(len(mapped)), ctypes.c_void_p(pages.ctypes.data)) == 0
            del anchor
            return int(np.count_nonzero(pages & 1)) * mmap.PAGESIZE

    return measure


@pytest.fixture
def content() -> bytes:
    """1 MiB that differs everywhere."""
    return np.random.default_rng(0).bytes(1 << 20)


@pytest.fixture
def data_file(tmp_path: Path, content: bytes) -> Path:
    """A file of ``content``, out of the page cache."""
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return path


@pytest.fixture(params=[None, False], ids=["direct", "buffered"])
def file(request: pytest.FixtureRequest, data_file: Path) -> Iterator[DirectFile]:
    with DirectFile(data_file, direct=request.param) as opened:
        if request.param is None and not opened.direct:
            pytest.skip("the folder for temporary files has no direct I/O")
        yield opened


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture
def reader(backend: Backend) -> Iterator[Reader]:
    reader = backend.make(4)
    yield reader
    reader.close()
