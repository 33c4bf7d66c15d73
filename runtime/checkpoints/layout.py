"""The layout of a bundle (pure): which tensors form which block, and where each block lies on flash.

A module without children that hold anything is a unit: its weights become one *dense* block if they are worth
streaming. The stacked weights of an experts module become one *expert* block per expert. All the rest is small and
goes into *resident* blocks. On flash the resident blocks come first, then the layers in the order in which the model
registers them, and in each layer the dense blocks before the experts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...tiering.store.bundle.manifest import Block, DataFile, TensorSpec, place_tensors
from ...tiering.units import PAGE, BlockId, Extent, GiB, KiB, MiB

FILE_LIMIT = 4 * GiB
"""Bytes of a data file that the next block may not pass. A single larger block has a file of its own. A residual lies
behind its expert all the same."""

RESIDENT_BLOCK = 8 * MiB
"""Bytes of small tensors that are gathered into one resident block."""

Entry = tuple[str, str, tuple[int, ...], int]
"""A tensor before it has a place: name, dtype, shape, bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of a bundle and the data files that they lie in.

    ``blocks`` are in the order of use, and have no checksums as long as nothing is written. ``tied`` maps the other
    names of a shared tensor to the one under which it is stored. ``drives`` has the drive of each data file, and is
    empty where there is only one drive.
    """

    blocks: tuple[Block, ...]
    tied: Mapping[str, str]
    drives: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[DataFile, ...]:
        """The data files that hold the blocks."""
        lengths: dict[int, int] = {}
        for block in self.blocks:
            lengths[block.extent.file] = block.extent.end
        drives = self.drives or (0,) * len(lengths)
        return tuple(DataFile(f"data-{n:05}.bin", length, drives[n]) for n, length in sorted(lengths.items()))

    @property
    def total_bytes(self) -> int:
        """Bytes of all blocks, padding included."""
        return sum(block.extent.length for block in self.blocks)

    def drive_of(self, block: Block) -> int:
        """Number of the drive that ``block`` lies on."""
        return self.drives[block.extent.file] if self.drives else 0

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and places: equal layouts of equal weights give equal bundles.

        The number of drives makes no difference: the places are those on one drive.
        """
        extents = _lay_end_to_end((b.id, b.extent.length) for b in self.blocks)
        parts = [
            [list(b.id), [extent.file, extent.offset, extent.length], b.resident]
            + [[t.name, t.dtype, list(t.shape), t.offset] for t in b.tensors]
            for b, extent in zip(self.blocks, extents, strict=True)
        ]
        return hashlib.sha256(json.dumps([parts, dict(self.tied)], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """The own tensors of the module at ``path``, which lies in ``layer`` (its own path outside of layers).

    ``buffers`` and ``stacked`` are full names of some of ``entries``: buffers, and parameters that hold one slice for
    each of ``experts``. ``is_unit``: nothing below the module holds weights.
    """

    path: str
    layer: str
    entries: tuple[Entry, ...]
    buffers: frozenset[str]
    stacked: frozenset[str]
    experts: int
    is_unit: bool


def lay_out(
    modules: Sequence[ModuleTensors],
    tied: Mapping[str, str],
    addresses: Mapping[str, int],
    order: Mapping[str, Sequence[int]],
) -> Layout:
    """The layout of ``modules``, which are in the order of the model's state dict.

    ``addresses`` has the address, modulo TENSOR_ALIGNMENT, at which transformers has a tensor (0 if not given). The
    tensor is placed at an equal one, for the same bits. ``order`` has, by the path of an experts module, the order in
    which its experts lie (ascending if not given).
    """
    total = sum(length for module in modules for *_, length in module.entries)
    small = min(256 * KiB, max(4 * KiB, total // 1000))
    resident: list[Entry] = []
    dense: dict[str, list[tuple[BlockId, list[Entry]]]] = {}
    experts: dict[str, list[tuple[BlockId, list[Entry]]]] = {}
    for module in modules:
        for expert in order.get(module.path, range(module.experts)) if module.stacked else ():
            slices = [_slice_of(entry) for entry in module.entries if entry[0] in module.stacked]
            experts.setdefault(module.layer, []).append((BlockId("expert", module.path, expert), slices))
        # Buffers stay: modules may keep references to them, or write to them.
        resident += [entry for entry in module.entries if entry[0] in module.buffers]
        rest = [entry for entry in module.entries if entry[0] not in module.stacked | module.buffers]
        own = dense.setdefault(module.layer, [])
        if module.is_unit and sum(length for *_, length in rest) > small:
            own.append((BlockId("dense", module.path), rest))
        else:
            resident += rest

    ordered = [(BlockId("dense", "", n), entries, True) for n, entries in enumerate(_gather(resident))]
    for layer in dense:
        ordered += [(id_, entries, False) for id_, entries in dense[layer] + experts.get(layer, [])]
    return Layout(tuple(_place(ordered, addresses)), tied)


def lay_out_again(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """``blocks`` with new places for encoded tensors, and for all that lies behind them. Tensors that are stored as
    they are keep their addresses."""
    placed = []
    for block in blocks:
        entries = [(spec.name, spec.dtype, spec.shape, spec.length) for spec in block.tensors]
        addresses = {spec.name: spec.offset for spec in block.tensors if spec.packing is None}
        places, length = place_tensors(entries, addresses)
        tensors = tuple(replace(spec, offset=at.offset) for spec, at in zip(block.tensors, places, strict=True))
        placed.append((replace(block, tensors=tensors), max(length, PAGE)))
    extents = _lay_end_to_end((block.id, length) for block, length in placed)
    return tuple(replace(block, extent=extent) for (block, _), extent in zip(placed, extents, strict=True))


def _slice_of(entry: Entry) -> Entry:
    """One expert's slice of a stacked tensor."""
    name, dtype, shape, length = entry
    return name, dtype, shape[1:], length // shape[0]


def _gather(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries of at most RESIDENT_BLOCK bytes. A larger entry has a run of its own."""
    run: list[Entry] = []
    for entry in entries:
        if run and place_tensors([*run, entry])[1] > RESIDENT_BLOCK:
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _place(blocks: Sequence[tuple[BlockId, list[Entry], bool]], addresses: Mapping[str, int]) -> Iterator[Block]:
    """Give every block its extent."""
    placed: list[tuple[BlockId, bool, tuple[TensorSpec, ...], int]] = []
    for id_, entries, resident in blocks:
        # An expert's slices lie behind those of the experts before it.
        slices = id_.part if id_.kind == "expert" else 0
        tensors, length = place_tensors(entries, {n: addresses.get(n, 0) + slices * size for n, _, _, size in entries})
        placed.append((id_, resident, tensors, max(length, PAGE)))
    extents = _lay_end_to_end((id_, length) for id_, *_, length in placed)
    for (id_, resident, tensors, _), extent in zip(placed, extents, strict=True):
        yield Block(id_, extent, "", tensors, resident)


def _lay_end_to_end(lengths: Iterable[tuple[BlockId, int]]) -> Iterator[Extent]:
    """Extents of blocks of these lengths, one after the other, in files of at most FILE_LIMIT bytes."""
    file = offset = 0
    for block, length in lengths:
        if offset and offset + length > FILE_LIMIT and block.kind != "residual":
            file, offset = file + 1, 0
        yield Extent(file, offset, length)
        offset += length
