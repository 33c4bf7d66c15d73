"""The file that KV pages lie in when they are not in memory: private, and gone with the process.

tiering/kv/evicting.py decides which page leaves memory, and writeback.py beside this file writes it.
"""

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xxhash

from ....kernels.io.directio import REFUSALS, DirectFile, Segment
from ....kernels.io.reading import Reader
from ....kernels.io.regular import open_regular
from ....kernels.io.system import SYSTEM
from ....kernels.waiting import Then
from ....tiering.driving.small_files import make_folder
from ....tiering.errors import FlashFull, PenstockError, ReadError
from ....tiering.units import format_size


class Spill:
    """Bytes at offsets of a file below ``folder``, read by ``reader``, which is closed with it. Any thread may call;
    one writes at a time.

    The file has no name once it is open: nobody else can read it, and a crash leaves nothing behind. Of each buffer
    that is written a checksum is kept, which is compared when it is read. Raises FlashFull or PenstockError where it
    cannot be made.
    """

    def __init__(self, folder: Path, reader: Reader, *, direct: bool | None = None) -> None:
        self._reader = reader
        try:
            make_folder(folder, parents=True)
            descriptor, name = tempfile.mkstemp(prefix="kv-", dir=folder)  # 0600
        except OSError as error:
            raise PenstockError(
                f"{folder}: no file for KV can be made there ({error.strerror}); see [store] path"
            ) from error
        try:
            SYSTEM.set_mode(descriptor, 0o600)  # mkstemp heeds the umask
            os.close(descriptor)
            self._file = DirectFile(name, direct=direct)
            self._out = open_regular(name, os.O_WRONLY, follow=False, direct=self._file.direct)
        finally:
            os.unlink(name)
        self._folder = folder
        self._allocated = 0
        self._checksums: dict[int, int] = {}  # by offset; of what was written there last

    def reserve(self, length: int) -> None:
        """Have the file system set aside the first ``length`` bytes. Raises FlashFull where it cannot."""
        if length <= self._allocated:
            return
        try:
            SYSTEM.reserve(self._out, self._allocated, length - self._allocated)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise FlashFull(
                    f"{self._folder}: the drive has no room for {format_size(length)} of KV; free some, raise [kv] "
                    "host, or shorten the context. What was computed so far is intact"
                ) from error
            if error.errno not in REFUSALS:
                raise self._failed("prepare", error) from error
        self._allocated = length

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write ``buffers`` one after the other, from ``offset`` on. Raises FlashFull and ReadError."""
        try:
            for buffer in buffers:
                self._checksums[offset] = xxhash.xxh3_64_intdigest(buffer)
                done = 0
                while done < len(buffer):
                    done += SYSTEM.write_at(self._out, buffer[done:], offset + done)
                offset += len(buffer)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FlashFull(f"{self._folder}: the drive is full; free some room for KV") from error
            raise self._failed("take", error) from error

    def read(self, offset: int, buffers: Sequence[memoryview], then: Then) -> None:
        """Start to fill ``buffers``, as they were written, with what lies at ``offset``; ``then`` as in Reader.submit,
        which is given a ReadError for bytes that are not those that were written."""
        segments = []
        for buffer in buffers:
            segments.append(Segment(offset, buffer))
            offset += len(buffer)

        def landed(problem: Exception | None) -> None:
            if problem is None and not all(map(self._is_right, segments)):
                problem = ReadError(
                    "KV pages on flash are not what was written, and nothing was computed on them: the drive or "
                    "its memory is damaged. Compute the context again, with [store] path on another drive"
                )
            then(problem)

        self._reader.submit(self._file, segments, landed)

    def close(self) -> None:
        """Let go of the file; its bytes are gone. Idempotent. Nobody reads or writes any more."""
        self._reader.close()
        self._file.close()
        out, self._out = self._out, -1
        if out >= 0:
            os.close(out)

    def _is_right(self, segment: Segment) -> bool:
        return xxhash.xxh3_64_intdigest(segment.buffer) == self._checksums[segment.offset]

    def _failed(self, what: str, error: OSError) -> ReadError:
        return ReadError(f"{self._folder}: the drive failed to {what} KV pages ({error.strerror or error})")
