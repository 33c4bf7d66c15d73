"""One prefix file: written aside, read block by block; nothing of it is believed before its checksum is right."""

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from ....kernels.closing import Closing
from ....kernels.io.directio import DirectFile, Segment, ShortRead
from ....kernels.io.directwrite import DirectWriter
from ....kernels.io.regular import open_regular
from ....kernels.io.system import SYSTEM
from ....kernels.memory.arena import Arena
from ...errors import FlashFull, PrefixDamaged, PrefixError
from ...prefix.chain import Chain, chain_of
from ...prefix.header import Header, Stored, dump, length_of, parse
from ...prefix.roles import StoredTensor
from ...units import PAGE, MiB
from ..bundle.folder import PARTIAL

STAGING = 4 * MiB
"""Bytes that are gathered before they are written, or read at a time."""

Fill = Callable[[int | None, int, memoryview], None]
"""Puts tensor number ``part`` of block number ``block`` of the prefix (None: of its state) into a buffer of that
tensor's length."""


class FileAside:
    """A file being written, alive for as long as this is open; removed at the end if it has still this name.
    The store's lock is held while it is made."""

    def __init__(self, folder: Path, length: int) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.{length}{PARTIAL}"
        self.descriptor = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, follow=False)
        SYSTEM.lock(self.descriptor, wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def write(aside: FileAside, header: Header, fill: Fill, *, direct: bool | None = None) -> Header:
    """Write a prefix file and make it durable; the header, now with checksums. ``aside.path`` is there, and empty.

    Raises FlashFull when the drive is full, PrefixError when it fails.
    """
    try:
        with DirectWriter(aside.path, direct=direct) as writer:
            out = _Gathering(writer, max(STAGING, *(part.room for part in (*header.parts, *header.state_parts))))
            out.zeros(header.start)
            for index in range(len(header.blocks)):
                _put(out, header.parts, header.first + index, fill)
            if header.state:
                _put(out, header.state_parts, None, fill)
            out.write_out()
            writer.sync()
        whole = header.with_checksums(out.checksums)
        # The header comes last, and not past the page cache: its checksums are known only now.
        SYSTEM.write_at(aside.descriptor, dump(whole), 0)
        os.fsync(aside.descriptor)
        return whole
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FlashFull(
                f"the drive of {aside.path.parent} is full, so a prompt is not stored; make room there, "
                "or: penstock cache prune"
            ) from error
        raise PrefixError(f"{aside.path.parent} cannot be written: {error.strerror or error}") from error


class _Gathering:
    """Appends to a file through a buffer of ``size`` bytes, and takes checksums."""

    def __init__(self, writer: DirectWriter, size: int) -> None:
        self._writer, self._view = writer, Arena(size, huge_pages=False).view(0, size)
        self._filled = 0
        self.checksums: list[str] = []

    def room(self, length: int) -> memoryview:
        """The next ``length`` bytes to go."""
        if self._filled + length > len(self._view):
            self.write_out()
        self._filled += length
        return self._view[self._filled - length : self._filled]

    def zeros(self, length: int) -> None:
        for _ in range(length // PAGE):
            self.room(PAGE)[:] = bytes(PAGE)

    def write_out(self) -> None:
        self._writer.write(self._view[: self._filled])
        self._filled = 0


def _put(out: _Gathering, parts: Sequence[StoredTensor], block: int | None, fill: Fill) -> None:
    digest = xxhash.xxh3_64()
    for number, part in enumerate(parts):
        room = out.room(part.room)
        fill(block, number, room[: part.length])
        room[part.length :] = bytes(part.room - part.length)
        digest.update(room)
    out.checksums.append(digest.hexdigest())


class PrefixFile(Closing):
    """A prefix file, open for reading by several threads; ``header`` and ``length`` are as they were then.

    Raises PrefixVersionError and PrefixDamaged; FileNotFoundError where it has gone, PrefixError where it cannot be
    read.
    """

    def __init__(self, path: Path, *, direct: bool | None = None) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # a link leads to a file of somebody else
                raise PrefixDamaged(f"{path} is damaged: it is no file but a link, a folder or a pipe")
            self._file = DirectFile(path, direct=direct)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise PrefixError(f"{path} cannot be read: {error.strerror}") from error
        try:
            self.header, self.length = parse(self._read_header(), str(path)), self._file.length
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> bytes:
        first = self._some(0, PAGE)
        length = length_of(first, str(self.path))
        return first if length == PAGE else first + self._some(PAGE, length - PAGE)

    def _some(self, offset: int, length: int) -> bytes:
        if offset + length > self._file.length:
            raise PrefixDamaged(f"{self.path} is damaged: it ends within its header")
        view = Arena(length, huge_pages=False).view(0, length)
        self._fill(offset, [view])
        return bytes(view)

    def hashes(self) -> tuple[str, ...]:
        """Those of the blocks, made from the token ids that the file has."""
        return chain_of(self.header.parent, self.header.tokens, self.header.block).hashes

    def belongs(self, chain: Chain, first: int, count: int) -> bool:
        """Whether its ``count`` blocks that are numbers ``first`` and on of ``chain`` hold just these tokens."""
        header = self.header
        index = first - header.first
        same_tokens = header.tokens[index * header.block : (index + count) * header.block] == chain.span(first, count)
        known = header.first <= len(chain.hashes) and header.parent == chain.before(header.first)
        return header.root == chain.root and header.block == chain.block and known and index >= 0 and same_tokens

    def read(self, extent: Stored, into: Iterable[Sequence[memoryview]], what: str) -> None:
        """Fill the buffers that ``into`` yields, PAGE aligned and together as long as ``extent``: the buffers of each
        step are filled when the next step is asked for. What they hold is good once this returns.

        Raises PrefixDamaged, which calls the extent ``what``, when it is not all there or was altered, and PrefixError
        when the drive fails.
        """
        digest, at = xxhash.xxh3_64(), extent.offset
        for buffers in into:
            self._fill(at, buffers)
            for buffer in buffers:
                digest.update(buffer)
            at += sum(map(len, buffers))
        assert at == extent.end, "the buffers are not as long as what they take"
        if digest.hexdigest() != extent.checksum:
            raise PrefixDamaged(f"{self.path} is damaged: {what}, at {extent.offset}, has another checksum")

    def check(self, buffer: memoryview) -> None:
        """Read all that is there, through ``buffer``. Raises PrefixDamaged, and PrefixError when the drive fails."""
        for number, extent in enumerate(self.header.extents):
            if extent.end > self.length:
                if self.length != extent.offset:
                    raise PrefixDamaged(f"{self.path} is damaged: it ends within block {number}, at {self.length}")
                return
            self.read(extent, in_steps(extent, buffer), f"block {number}")

    def _fill(self, offset: int, buffers: Sequence[memoryview]) -> None:
        segments: list[Segment] = []
        for buffer in buffers:
            segments.append(Segment(offset, buffer))
            offset += len(buffer)
        try:
            self._file.read(segments)
        except ShortRead as error:
            raise PrefixDamaged(f"{self.path} is damaged: it ends at {self._file.length}") from error
        except OSError as error:
            raise PrefixError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._file.close()


def in_steps(extent: Stored, buffer: memoryview) -> Iterator[Sequence[memoryview]]:
    """``extent`` through ``buffer``, piece by piece."""
    for at in range(0, extent.length, len(buffer)):
        yield [buffer[: min(len(buffer), extent.length - at)]]


def shorten(path: Path, length: int) -> None:
    """Cut the prefix file to ``length`` bytes; its time of use stays. Raises OSError, also where it is a link."""
    descriptor = open_regular(path, os.O_WRONLY, follow=False)
    try:
        status = os.fstat(descriptor)
        os.ftruncate(descriptor, length)
        os.utime(descriptor if os.utime in os.supports_fd else path, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(descriptor)


def is_abandoned(path: Path) -> bool:
    """Whether nobody who lives writes the file aside ``path``."""
    try:
        descriptor = open_regular(path, os.O_RDONLY, follow=False)
    except FileNotFoundError:
        return False
    except OSError as error:  # a link, a pipe: a writer of ours makes none
        return error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO)
    try:
        return SYSTEM.lock(descriptor, wait=False)
    finally:
        os.close(descriptor)
