"""Writes a bundle: block after block into a folder aside, resumable at any time, renamed when it is whole.

States of a bundle ``B`` in the store: ``B.partial`` with a journal (being written), ``B.partial`` with a manifest
(whole, a crash came before the rename), ``B`` (whole). A journal line is written only after the block's data is
durable, so on resume everything journaled is kept and everything behind it is cut off and written again.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import xxhash

from ...kernels.arena import Arena
from ...kernels.directwrite import DirectWriter
from ..errors import BundleError, FlashFull
from ..units import MiB
from . import journal
from .folder import PARTIAL, sync, write_durably
from .manifest import Block, DataFile, Manifest, dump

COMMIT = 64 * MiB
"""Bytes after which what is written is made durable and journaled: what a crash may cost."""

_ZEROS = bytes(64 * 1024)


class BundleWriter:
    """Writes the blocks of ``plan``, in its order, into ``files``, to become the bundle ``target``.

    Takes up what an interrupted writer with an equal plan left; ``done`` is the number of blocks that are there.
    ``staging`` bytes of memory are used. The caller holds the bundle's lock. All methods raise FlashFull when the
    drive is full, and BundleError when it fails; what is journaled stays.
    """

    def __init__(
        self,
        target: Path,
        plan: Sequence[Block],
        files: Sequence[DataFile],
        *,
        staging: int = 8 * MiB,
        direct: bool | None = None,
    ) -> None:
        self.target = target
        self.folder = target.with_name(target.name + PARTIAL)
        self._plan = list(plan)
        self._names = [file.name for file in files]
        self._direct = direct
        self._journal = self.folder / journal.NAME
        self._arena = Arena(staging, huge_pages=False)
        self._buffer = self._arena.view(0, self._arena.length)
        self._filled = 0
        self._writer: DirectWriter | None = None
        self._uncommitted = 0
        with self._translated():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.done = self._resume()
        self._committed = self.done

    @property
    def done_bytes(self) -> int:
        return sum(block.extent.length for block in self._plan[: self.done])

    def append(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Write the next block of the plan. ``pieces`` are offsets in the block, ascending, and the bytes there; all
        between and behind them is zero. A piece, of bytes, is used up before the next is asked for."""
        block = self._plan[self.done]
        checksum, at = xxhash.xxh3_64(), 0
        with self._translated():
            self._go_to(block)
        for offset, data in pieces:
            assert at <= offset <= block.extent.length - data.nbytes, f"{block.id} has overlapping pieces"
            self._put_zeros(offset - at, checksum)
            checksum.update(data)
            self._put(data)
            at = offset + data.nbytes
        self._put_zeros(block.extent.length - at, checksum)
        self._plan[self.done] = replace(block, checksum=checksum.hexdigest())
        self.done += 1
        self._uncommitted += block.extent.length
        if self._uncommitted >= COMMIT:
            self.commit()

    def commit(self) -> None:
        """Make all appended blocks durable and journal them."""
        if self._writer is None or self._committed == self.done:
            return
        with self._translated():
            self._write_out()
            self._writer.sync()
            journal.append(self._journal, self._plan[self._committed : self.done])
        self._committed, self._uncommitted = self.done, 0

    def finish(self, manifest: Manifest) -> Manifest:
        """Commit, write ``manifest`` with the blocks as they are, give the bundle its name; the manifest written."""
        assert self.done == len(self._plan), "the bundle lacks blocks"
        self.commit()
        self.close()
        manifest = replace(manifest, blocks=tuple(self._plan))
        with self._translated():
            write_durably(self.folder / "manifest.json", dump(manifest))
            publish(self.target)
        return manifest

    def close(self) -> None:
        """Let go of the files, as they are. Idempotent."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _resume(self) -> int:
        """Cut everything that is not journaled; how many blocks are there."""
        checksums = journal.read(self._journal, self._plan)
        written = {path.name: path for path in self.folder.iterdir() if path.suffix == ".bin"}
        lengths = {name: path.stat().st_size for name, path in written.items()}
        done = 0
        ends: dict[str, int] = {}
        for block, checksum in zip(self._plan, checksums, strict=False):
            name = self._names[block.extent.file]
            if lengths.get(name, 0) < block.extent.end:
                break
            self._plan[done] = replace(block, checksum=checksum)
            ends[name] = block.extent.end
            done += 1
        journal.rewrite(self._journal, self._plan[:done])
        for name in lengths:
            if name not in ends:
                (self.folder / name).unlink()
            elif lengths[name] > ends[name]:
                os.truncate(self.folder / name, ends[name])
        sync(self.folder)
        return done

    def _go_to(self, block: Block) -> None:
        """Have the block's data file open, at the block's place."""
        path = self.folder / self._names[block.extent.file]
        if self._writer is None or self._writer.path != path:
            self.commit()
            self.close()
            self._writer = DirectWriter(path, direct=self._direct)
            sync(self.folder)
        assert self._writer.position + self._filled == block.extent.offset, f"{block.id} is out of place"

    def _put_zeros(self, count: int, checksum: xxhash.xxh3_64) -> None:
        while count > 0:
            piece = _ZEROS[:count]
            checksum.update(piece)
            self._put(memoryview(piece))
            count -= len(piece)

    def _put(self, view: memoryview) -> None:
        while view:
            step = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + step] = view[:step]
            self._filled += step
            view = view[step:]
            if self._filled == len(self._buffer):
                with self._translated():
                    self._write_out()

    def _write_out(self) -> None:
        assert self._writer is not None
        self._writer.write(self._buffer[: self._filled])
        self._filled = 0

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Say what a failing drive means for the bundle."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise FlashFull(
                    f"the drive of {self.folder} is full; make room and run the same again: packing goes on after "
                    "what is written, or delete that folder"
                ) from error
            raise BundleError(f"{self.folder} cannot be written: {error.strerror or error}") from error


def publish(target: Path) -> bool:
    """Give the bundle aside its name if it is whole; whether ``target`` is there now."""
    aside = target.with_name(target.name + PARTIAL)
    if not target.exists() and (aside / "manifest.json").is_file():
        (aside / journal.NAME).unlink(missing_ok=True)
        sync(aside)
        os.rename(aside, target)
        sync(target.parent)
    return (target / "manifest.json").is_file()
