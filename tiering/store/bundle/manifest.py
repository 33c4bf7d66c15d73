"""The bundle's manifest (pure): where each block lies, its tensors, and its checksum. manifest_file.py reads one.

A bundle is a folder::

    manifest.json      the manifest, written last: a folder without it is no bundle
    model/             config, generation config and tokenizer of the checkpoint, as they were
    data-00000.bin     blocks one after the other in order of use, each PAGE aligned and padded with zeros

A striped bundle has its blocks on several drives. Some of its data files lie in other folders, named by the manifest.
Its manifest has version 2. In version 1, all files are in the bundle's own folder. A manifest with encoded matrices has
version 3.

A *dense* block holds the weights of one module and is leased while that module runs. Blocks with ``resident`` set hold
everything too small to be worth streaming (norms, biases, routers, buffers) and stay in memory. An *expert* block
holds all matrices of one expert, each tensor named after the stacked parameter that it is a slice of. Where these are
encoded in several planes, it holds the first ones, and *residual* blocks behind it hold the others.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from ...units import PAGE, BlockId, Extent, align_up

PLAIN, STRIPED, ENCODED = 1, 2, 3
"""The versions. A bundle gets the lowest that can describe it, so that older versions of penstock can read it."""
TENSOR_ALIGNMENT = 64
"""Bytes. A tensor's address modulo this can change the last bits of a product: vectorised products treat the numbers
before the first aligned byte apart. torch's own allocator gives multiples of it. Weights that transformers maps from a
file lie where the file has them."""
DATA = re.compile(r"data-[0-9]{5,9}\.bin")
"""The name of a data file."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a matrix is stored: as plane number ``plane`` of the weight format called ``format``.

    ``transposed``: the transpose is encoded. ``address``, modulo TENSOR_ALIGNMENT, is the address that the matrix would
    have if it were stored as it is. An exact format decodes to such an address, for the same bits in products.
    """

    format: str
    plane: int = 0
    transposed: bool = False
    address: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor inside a block: ``name`` as in the module's state dict, ``dtype`` as in ``torch.<dtype>``. ``length``
    bytes are stored, as ``packing`` says. If it is None, they are stored as they are in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    packing: Packing | None = None

    @property
    def encoded_shape(self) -> tuple[int, int]:
        """The shape [n, k] of the matrix that is encoded, or would be: the transpose's if ``packing`` says so."""
        rows, columns = self.shape
        return (columns, rows) if self.packing is not None and self.packing.transposed else (rows, columns)


@dataclass(frozen=True, slots=True)
class Block:
    """A block on flash. ``checksum`` is the hexadecimal XXH3-64 of the whole extent, padding included."""

    id: BlockId
    extent: Extent
    checksum: str
    tensors: tuple[TensorSpec, ...]
    resident: bool = False


@dataclass(frozen=True, slots=True)
class DataFile:
    """``drive`` is a number in the manifest's ``drives``, 0 in a plain bundle."""

    name: str
    length: int
    drive: int = 0


@dataclass(frozen=True, slots=True)
class BundleDrive:
    """A drive with a share of the blocks: the absolute ``folder`` of its data files ("" is the bundle's own), and the
    speed that was measured before the blocks were dealt to drives."""

    folder: str
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """``identity`` is a digest of all that decides the content (checkpoint, dtype, formats). ``tied`` maps a state-dict
    name to the name under which its weights are stored. ``codec`` names the requested weight formats. ``drives`` are
    the drives of a striped bundle, its own first, and empty in a plain one. ``notes`` say what is stored otherwise than
    requested."""

    identity: str
    checkpoint: str
    dtype: str
    codec: str
    tied: Mapping[str, str]
    files: tuple[DataFile, ...]
    blocks: tuple[Block, ...]
    drives: tuple[BundleDrive, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The lowest version that can describe this bundle."""
        if self.notes or any(spec.packing for block in self.blocks for spec in block.tensors):
            return ENCODED
        return STRIPED if self.drives else PLAIN

    @property
    def total_bytes(self) -> int:
        """Bytes of all data files."""
        return sum(file.length for file in self.files)

    @property
    def drive_bytes(self) -> tuple[int, ...]:
        """Bytes of the data files on each drive. A plain bundle has one drive."""
        found = [0] * max(1, len(self.drives))
        for file in self.files:
            found[file.drive] += file.length
        return tuple(found)

    def places(self, bundle: Path) -> list[Path]:
        """The folder of each drive's data files. A plain bundle has only ``bundle``, the manifest's folder."""
        return [bundle, *(Path(drive.folder) for drive in self.drives[1:])]

    def drive_of(self, block: Block) -> int:
        """Number of the drive that ``block`` lies on."""
        return self.files[block.extent.file].drive


def join_planes(blocks: Iterable[Block]) -> Iterator[list[tuple[Block, TensorSpec]]]:
    """Yield each tensor of ``blocks``, which are in the manifest's order: as it is, or in all its planes."""
    planes: dict[str, list[tuple[Block, TensorSpec]]] = {}
    for block in blocks:
        if block.id.kind != "residual":  # residuals lie behind their expert
            yield from planes.values()
            planes = {}
        for spec in block.tensors:
            planes.setdefault(spec.name, []).append((block, spec))
    yield from planes.values()


def place_tensors(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], addresses: Mapping[str, int] | None = None
) -> tuple[tuple[TensorSpec, ...], int]:
    """Lay tensors ``(name, dtype, shape, length)`` one after the other. Returns specs and the padded length.

    Each is placed at ``addresses[name]`` (0 if not given) modulo TENSOR_ALIGNMENT. Lengths are in bytes.
    """
    specs, offset = [], 0
    for name, dtype, shape, length in tensors:
        address = (addresses or {}).get(name, 0) % TENSOR_ALIGNMENT
        offset = align_up(max(offset - address, 0), TENSOR_ALIGNMENT) + address
        specs.append(TensorSpec(name, dtype, shape, offset, length))
        offset += length
    return tuple(specs), align_up(offset, PAGE)


def dump(manifest: Manifest) -> str:
    """Return the manifest as JSON. Equal manifests give equal text."""
    version = manifest.version
    document = {"format": "penstock-bundle", "version": version} | asdict(replace(manifest, blocks=()))
    document["files"] = [asdict(file) if version > PLAIN else _plain(file) for file in manifest.files]
    document["blocks"] = [_dump_block(block) for block in manifest.blocks]
    for field, since in (("drives", STRIPED), ("notes", ENCODED)):
        if version < since:
            del document[field]
    return encode(signed(document))


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``document`` with a checksum: the SHA-256 of the rest of it."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return rest | {"checksum": hashlib.sha256(encode(rest).encode()).hexdigest()}


def encode(document: Mapping[str, Any]) -> str:
    """Return ``document`` as the JSON that its checksum is of."""
    return json.dumps(document, separators=(",", ":"))


def _plain(file: DataFile) -> dict[str, Any]:
    return {"name": file.name, "length": file.length}


def _dump_block(block: Block) -> dict[str, Any]:
    extent = block.extent
    return {
        "id": list(block.id),
        "extent": [extent.file, extent.offset, extent.length],
        "checksum": block.checksum,
        "resident": block.resident,
        "tensors": [
            [t.name, t.dtype, list(t.shape), t.offset, t.length, *([list(astuple(t.packing))] if t.packing else [])]
            for t in block.tensors
        ],
    }
