"""The data files of a bundle, open: which bytes lie where, and whether they are those that were packed."""

import errno
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import xxhash

from ....kernels.closing import Closing
from ....kernels.io.directio import DirectFile, Segment, ShortRead
from ...errors import BundleCorrupt, BundleError, ReadError
from ...progress import Progress, Quiet
from ...units import PAGE, MiB
from .manifest import Block, Manifest
from .manifest_file import read_manifest
from .stripes import absent

_WITHOUT = ', or compute without it (weights_quality = "base")'
_STEP = 8 * MiB
"""Bytes that ``verify`` holds at a time."""


class DataFiles(Closing):
    """A bundle, open for reading by several threads. Made by ``open``; ``close`` is idempotent."""

    def __init__(self, folder: Path, manifest: Manifest, files: Sequence[DirectFile]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._files = tuple(files)

    @staticmethod
    def is_bundle(folder: str | Path) -> bool:
        """Whether ``folder`` looks like a bundle: it has a manifest."""
        return (Path(folder).expanduser() / "manifest.json").is_file()

    @classmethod
    def open(cls, folder: Path, *, direct: bool | None = None) -> Self:
        """Open the bundle in ``folder``. ``direct`` as for DirectFile.

        Raises BundleError when there is none or it cannot be read, BundleVersionError when a newer penstock wrote it,
        BundleCorrupt when the manifest is damaged or a data file is missing or truncated. A drive that is not there is
        a BundleError: with it the bundle is whole.
        """
        folder = Path(folder).expanduser()
        manifest = read_manifest(folder)
        files: list[DirectFile] = []
        try:
            files.extend(_open_file(folder, manifest, number, direct) for number in range(len(manifest.files)))
        except BaseException:
            for file in files:
                file.close()
            raise
        return cls(folder, manifest, files)

    @property
    def model_folder(self) -> Path:
        """Configuration and tokenizer of the checkpoint."""
        return self.folder / "model"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The data files, as the manifest numbers them."""
        return tuple(file.path for file in self._files)

    @property
    def direct(self) -> bool:
        """Whether a data file is read past the page cache."""
        return any(file.direct for file in self._files)

    def read_rows(self, block: Block, first_page: int, into: memoryview) -> None:
        """Fill ``into`` with the pages of ``block`` from number ``first_page`` on, unchecked. Errors as in ``read``."""
        offset = block.extent.offset + first_page * PAGE
        if first_page < 0 or offset + into.nbytes > block.extent.end:
            raise ValueError(f"pages {first_page}.. ({into.nbytes} bytes) are outside of block {block.id}")
        try:
            _read(self._files[block.extent.file], [Segment(offset, into)])
        except ShortRead as error:
            raise self.corrupt(block, f"is cut off at {error.offset + error.got}") from error

    def verify(self, progress: Progress | None = None) -> list[BundleCorrupt]:
        """Read every block and compare it with its checksum; what is wrong, in the order of the blocks. Raises
        ReadError."""
        progress = progress or Quiet()
        found: list[BundleCorrupt] = []
        progress.start("verifying", sum(block.extent.length for block in self.manifest.blocks))
        buffer = memoryview(mmap.mmap(-1, _STEP))  # aligned, as direct reads ask for
        for block in self.manifest.blocks:
            checksum, done = xxhash.xxh3_64(), 0
            try:
                while done < block.extent.length:
                    view = buffer[: min(_STEP, block.extent.length - done)]
                    self.read_rows(block, done // PAGE, view)
                    checksum.update(view)
                    done += len(view)
                    progress.advance(len(view))
                if checksum.hexdigest() != block.checksum:
                    raise self.corrupt(block, "is altered: its checksum does not match")
            except BundleCorrupt as error:
                found.append(error)
        progress.finish()
        return found

    def close(self) -> None:
        """Let go of the data files. Idempotent; reads under way finish first."""
        for file in self._files:
            file.close()

    def corrupt(self, block: Block, what: str) -> BundleCorrupt:
        """The error that says ``what`` is wrong with ``block``, with its file and offset."""
        return _corrupt(self._files[block.extent.file].path, block, what)


def _open_file(folder: Path, manifest: Manifest, number: int, direct: bool | None) -> DirectFile:
    """The data file, if it is as long as it should be."""
    expected = manifest.files[number]
    place = manifest.places(folder)[expected.drive]
    path = place / expected.name
    own = [block for block in manifest.blocks if block.extent.file == number]
    try:
        file = DirectFile(path, direct=direct)
    except FileNotFoundError:
        if not place.is_dir() and place != folder:
            raise absent(folder, place) from None
        raise BundleCorrupt(f"{path} is missing; delete the bundle and pack again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror}") from error
    if file.length < expected.length:
        length = file.length
        file.close()
        broken = next((block for block in own if block.extent.end > length), None)
        if broken is None:
            raise BundleCorrupt(f"{path} is truncated to {length} bytes; delete the bundle and pack again")
        raise _corrupt(path, broken, f"is cut off: the file is truncated to {length} of {expected.length} bytes")
    return file


def in_passing(problem: Exception) -> bool:
    """Whether what came of a read may go away when it is tried again."""
    return isinstance(problem, OSError) and problem.errno == errno.EIO


def _read(file: DirectFile, segments: Sequence[Segment]) -> None:
    """Read, once more if the drive reports an I/O error. Raises ShortRead and ReadError."""
    for last in (False, True):
        try:
            file.read(segments)
            return
        except ShortRead:
            raise
        except OSError as error:
            if last or not in_passing(error):
                raise read_error(file, segments[0].offset, error) from error


def read_error(file: DirectFile, offset: int, error: OSError, *, residual: bool = False) -> ReadError:
    return ReadError(
        f"{file.path} cannot be read at offset {offset}: {error.strerror or error}; "
        f"check the drive, then `penstock verify` the bundle{_WITHOUT * residual}"
    )


def _corrupt(path: Path, block: Block, what: str) -> BundleCorrupt:
    return BundleCorrupt(
        f"{path}: block {block.id} at offset {block.extent.offset} {what}; delete the bundle and pack again"
        f"{_WITHOUT * (block.id.kind == 'residual')}"
    )
