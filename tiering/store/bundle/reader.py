"""An open bundle: its manifest and data files; every block that is read is checked before it is handed out."""

from collections.abc import Sequence
from pathlib import Path

import torch
import xxhash

from ....kernels.formats.planes import read_memory
from ....kernels.io.directio import DirectFile, Segment, ShortRead
from ...errors import BundleCorrupt
from .arrival import Read, find_fault_in, to_check
from .data_files import DataFiles, read_error
from .manifest import Block, Manifest


class Bundle(DataFiles):
    """A bundle, open for reading by several threads. Made by ``open``; ``close`` is idempotent."""

    def __init__(self, folder: Path, manifest: Manifest, files: Sequence[DirectFile]) -> None:
        super().__init__(folder, manifest, files)
        self._checked = {block.id for block in manifest.blocks if to_check(block)}

    def locate(self, blocks: Sequence[Block], into: Sequence[memoryview]) -> tuple[DirectFile, list[Segment]]:
        """Where to read ``blocks``, neighbours in one data file, and where to: ``into``, as long as their extents."""
        assert all(block.extent.file == blocks[0].extent.file for block in blocks), "blocks of several files"
        segments = [Segment(block.extent.offset, view) for block, view in zip(blocks, into, strict=True)]
        return self._files[blocks[0].extent.file], segments

    def fault(self, blocks: Sequence[Block], views: Sequence[memoryview]) -> BundleCorrupt | None:
        """What is wrong with the first of ``blocks`` whose bytes in ``views`` are not what was packed."""
        for block, view in zip(blocks, views, strict=True):
            if xxhash.xxh3_64_hexdigest(view) != block.checksum:
                return self.corrupt(block, "is altered: its checksum does not match")
            if block.id in self._checked:
                problem = self.find_fault(block, read_memory(torch.frombuffer(view, dtype=torch.uint8)))
                if problem is not None:
                    return problem
        return None

    def find_fault(self, block: Block, read: Read, at_once: int | None = None) -> BundleCorrupt | None:
        """What is wrong with the matrices of ``block``, whose checksum is right and whose bytes ``read`` gives, some
        ``at_once`` or all."""
        what = find_fault_in(block, read, at_once)
        return None if what is None else self.corrupt(block, what)

    def explain(self, problem: Exception, blocks: Sequence[Block]) -> Exception:
        """The error to raise where ``problem`` came of reading ``blocks``: BundleCorrupt, ReadError or itself."""
        error: Exception
        match problem:
            case ShortRead():
                there = problem.offset + problem.got
                broken = next(block for block in blocks if block.extent.end > there)
                error = self.corrupt(broken, f"is cut off at {there}")
            case OSError():
                residual = any(block.id.kind == "residual" for block in blocks)
                error = read_error(
                    self._files[blocks[0].extent.file], blocks[0].extent.offset, problem, residual=residual
                )
            case _:
                return problem
        error.__cause__ = problem
        return error
