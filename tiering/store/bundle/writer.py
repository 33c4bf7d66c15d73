"""Writes a bundle: block after block into a folder aside, resumable at any time, renamed when it is whole.

States of a bundle ``B`` in the store: ``B.partial`` with a journal (being written), ``B.partial`` with a manifest
(whole, a crash came before the rename), ``B`` (whole). A journal line is written only after the block's data is
durable, so on resume everything journaled is kept and everything behind it is cut off and written again. What a
striped bundle has on other drives lies in folders that are never renamed: one rename is what makes it whole.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import xxhash

from ....kernels.memory.arena import Arena
from ...driving.small_files import make_folder, sync_folder, write_durably
from ...units import PAGE, MiB
from . import journal
from .drive_writer import DriveWriter, translate_errors
from .folder import PARTIAL
from .manifest import Block, BundleDrive, DataFile, Manifest, dump

COMMIT = 64 * MiB
"""Bytes after which what is written is made durable and journaled: what a crash may cost."""

_ZEROS = bytes(64 * 1024)


class BundleWriter:
    """Writes the blocks of ``plan``, in its order, into ``files`` on ``drives``, to become the bundle ``target``.

    Without drives it is a plain bundle.

    Takes up what an interrupted writer with an equal plan left; ``done`` is the number of blocks that are there.
    ``staging`` bytes of memory are used. The caller holds the bundle's lock. All methods raise FlashFull when a
    drive is full, and BundleError when it fails; what is journaled stays.
    """

    def __init__(
        self,
        target: Path,
        plan: Sequence[Block],
        files: Sequence[DataFile],
        *,
        drives: Sequence[BundleDrive] = (),
        staging: int = 8 * MiB,
        direct: bool | None = None,
    ) -> None:
        self.target = target
        self.folder = target.with_name(target.name + PARTIAL)
        self._plan, self._files, self._drives = list(plan), list(files), tuple(drives)
        self._journal = self.folder / journal.NAME
        folders = [self.folder, *(Path(drive.folder) for drive in self._drives[1:])]
        share = max(PAGE, staging // len(folders) // PAGE * PAGE)
        self._arena = Arena(share * len(folders), huge_pages=False)
        self._on_drives = [
            DriveWriter(folder, self._arena.view(number * share, share), direct=direct)
            for number, folder in enumerate(folders)
        ]
        self._uncommitted = 0
        for folder in folders:  # the bundle's own first: a part of a bundle that is not there would be a leftover
            with translate_errors(folder):
                make_folder(folder)
                if folder == self.folder:
                    journal.begin(folder, self._drives)
        self.done = self._resume()
        self._committed = self.done

    @property
    def done_bytes(self) -> int:
        """Bytes of the blocks that are there."""
        return sum(block.extent.length for block in self._plan[: self.done])

    def append(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Write the next block of the plan. ``pieces`` are offsets in the block, ascending, and the bytes there; all
        between and behind them is zero. A piece, of bytes, is used up before the next is asked for."""
        block = self._plan[self.done]
        checksum, at = xxhash.xxh3_64(), 0
        drive = self._go_to(block)
        for offset, data in pieces:
            assert at <= offset <= block.extent.length - data.nbytes, f"{block.id} has overlapping pieces"
            _put_zeros(drive, offset - at, checksum)
            checksum.update(data)
            drive.put(data)
            at = offset + data.nbytes
        _put_zeros(drive, block.extent.length - at, checksum)
        self._plan[self.done] = replace(block, checksum=checksum.hexdigest())
        self.done += 1
        self._uncommitted += block.extent.length
        if self._uncommitted >= COMMIT:
            self.commit()

    def commit(self) -> None:
        """Make all appended blocks durable and journal them."""
        if self._committed == self.done:
            return
        for drive in self._on_drives:
            drive.sync()
        with translate_errors(self.folder):
            journal.append(self._journal, self._plan[self._committed : self.done])
        self._committed, self._uncommitted = self.done, 0

    def finish(self, manifest: Manifest) -> Manifest:
        """Commit, write ``manifest`` with files, drives and blocks as they are, give the bundle its name; the manifest
        written."""
        assert self.done == len(self._plan), "the bundle lacks blocks"
        self.commit()
        self.close()
        manifest = replace(manifest, files=tuple(self._files), blocks=tuple(self._plan), drives=self._drives)
        with translate_errors(self.folder):
            write_durably(self.folder / "manifest.json", dump(manifest))
            publish(self.target)
        return manifest

    def close(self) -> None:
        """Let go of the files, as they are. Idempotent."""
        for drive in self._on_drives:
            drive.close()

    def _resume(self) -> int:
        """Cut everything that is not journaled; how many blocks are there."""
        with translate_errors(self.folder):
            checksums = journal.read(self._journal, self._plan)
        lengths: dict[Path, int] = {}
        for drive in self._on_drives:
            with translate_errors(drive.folder):
                for path in drive.folder.iterdir():
                    if path.suffix == ".bin":
                        status = path.lstat()
                        # What is no file, such as a link, holds nothing of ours, and goes.
                        lengths[path] = status.st_size if stat.S_ISREG(status.st_mode) else -1
        done = 0
        ends: dict[Path, int] = {}
        for block, checksum in zip(self._plan, checksums, strict=False):
            path = self._path(block)
            if lengths.get(path, -1) < block.extent.end:
                break
            self._plan[done] = replace(block, checksum=checksum)
            ends[path] = block.extent.end
            done += 1
        with translate_errors(self.folder):
            journal.rewrite(self._journal, self._plan[:done])
        for path, length in lengths.items():
            with translate_errors(path.parent):
                if path not in ends:
                    path.unlink()
                elif length > ends[path]:
                    os.truncate(path, ends[path])  # it is no link, as was seen above
        for drive in self._on_drives:
            with translate_errors(drive.folder):
                sync_folder(drive.folder)
        return done

    def _path(self, block: Block) -> Path:
        file = self._files[block.extent.file]
        return self._on_drives[file.drive].folder / file.name

    def _go_to(self, block: Block) -> DriveWriter:
        """The writer of the block's drive, with the block's data file open, at the block's place."""
        file = self._files[block.extent.file]
        drive = self._on_drives[file.drive]
        if not drive.is_at(file.name):
            self.commit()
            drive.open(file.name)
        assert drive.position == block.extent.offset, f"{block.id} is out of place"
        return drive


def _put_zeros(drive: DriveWriter, count: int, checksum: xxhash.xxh3_64) -> None:
    while count > 0:
        piece = _ZEROS[:count]
        checksum.update(piece)
        drive.put(memoryview(piece))
        count -= len(piece)


def publish(target: Path) -> bool:
    """Give the bundle aside its name if it is whole; whether ``target`` is there now.

    What a deletion has left under that name, without a manifest, makes room for it.
    """
    aside = target.with_name(target.name + PARTIAL)
    if not (target / "manifest.json").is_file() and (aside / "manifest.json").is_file():
        shutil.rmtree(target, ignore_errors=True)
        journal.end(aside)
        sync_folder(aside)
        os.rename(aside, target)
        sync_folder(target.parent)
    return (target / "manifest.json").is_file()
