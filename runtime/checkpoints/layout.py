"""What a bundle of a model will look like (pure): which tensors form which block, and where each block lies on flash.

A module without children that hold anything is a unit: its weights become one *dense* block if they are worth
streaming. The stacked weights of an experts module become one *expert* block per expert. All the rest is small and
goes into *resident* blocks. On flash the resident blocks come first, then the layers in the order in which the model
registers them, and in each layer the dense blocks before the experts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...tiering.errors import UnplaceableModule
from ...tiering.store.bundle.manifest import Block, DataFile, TensorSpec, place_tensors
from ...tiering.units import PAGE, BlockId, Extent, GiB, KiB, MiB

FILE_LIMIT = 4 * GiB
"""Bytes of a data file that the next block may not pass; a single larger block has a file of its own. A residual lies
behind its expert all the same."""

RESIDENT_BLOCK = 8 * MiB
"""Bytes of small tensors that are gathered into one resident block."""

Entry = tuple[str, str, tuple[int, ...], int]
"""A tensor before it has a place: name, dtype, shape, bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``blocks`` in the order of use, without checksums as long as nothing is written; ``tied`` maps the other names
    of a shared tensor to the one under which it is stored; ``drives`` has the drive of each data file, and is empty
    where there is only one."""

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
        return sum(block.extent.length for block in self.blocks)

    def drive_of(self, block: Block) -> int:
        """Number of the drive that ``block`` lies on."""
        return self.drives[block.extent.file] if self.drives else 0

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and places: two equal layouts of equal weights give equal bundles. To how
        many drives the blocks are dealt makes no difference: the places are those on one."""
        parts = [
            [list(b.id), [extent.file, extent.offset, extent.length], b.resident]
            + [[t.name, t.dtype, list(t.shape), t.offset] for t in b.tensors]
            for b, extent in zip(self.blocks, _in_a_row((b.id, b.extent.length) for b in self.blocks), strict=True)
        ]
        return hashlib.sha256(json.dumps([parts, dict(self.tied)], sort_keys=True).encode()).hexdigest()


def is_experts(module: nn.Module) -> bool:
    """Whether transformers' experts interface computes ``module``: its weights are stacked, one slice per expert."""
    names = ("num_experts", "is_transposed", "has_bias", "has_gate", "_apply_gate")
    return all(hasattr(module, name) for name in names)


def layout(
    model: nn.Module, addresses: Mapping[str, int] | None = None, order: Mapping[str, Sequence[int]] | None = None
) -> Layout:
    """The layout of ``model``, which may be on the meta device: only names, shapes and dtypes count.

    ``addresses`` says at which address, modulo TENSOR_ALIGNMENT, transformers has a tensor (0 if not given): it is
    placed at an equal one, for the same bits. ``order`` says, by the path of an experts module, in which order its
    experts lie (ascending if not given).

    Raises UnplaceableModule for a module whose state is not made of tensors.
    """
    tensors, tied = _unique_tensors(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    total = sum(tensor.nbytes for tensor in tensors.values())
    small = min(256 * KiB, max(4 * KiB, total // 1000))

    resident: list[Entry] = []
    dense: dict[str, list[tuple[BlockId, list[Entry]]]] = {}
    experts: dict[str, list[tuple[BlockId, list[Entry]]]] = {}
    for path, own in _by_module(tensors):
        module, layer = modules[path], layer_of(path, modules) or path
        stacked = _stacked(module, own)
        for expert in (order or {}).get(path, range(int(module.num_experts))) if stacked else ():
            slices = [_entry(name, own[name][expert]) for name in stacked]
            experts.setdefault(layer, []).append((BlockId("expert", path, expert), slices))
        # Buffers stay: modules may keep references to them, or write to them.
        buffers = {name for name in own if name.rpartition(".")[2] in module._buffers}
        resident += [_entry(name, own[name]) for name in own if name in buffers]
        rest = [_entry(name, tensor) for name, tensor in own.items() if name not in stacked and name not in buffers]
        if _is_unit(module) and sum(length for *_, length in rest) > small:
            dense.setdefault(layer, []).append((BlockId("dense", path), rest))
        else:
            dense.setdefault(layer, [])
            resident += rest

    ordered = [(BlockId("dense", "", n), entries, True) for n, entries in enumerate(_gather(resident))]
    for layer in dense:
        ordered += [(id_, entries, False) for id_, entries in dense[layer] + experts.get(layer, [])]
    return Layout(tuple(_place(ordered, addresses or {})), tied)


def _unique_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict without repetitions, and which name stands for each name left out."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise UnplaceableModule(
                f"{name} is a {type(tensor).__name__}, not a tensor: penstock cannot stream this model"
            )
        # By object, not by address: on the meta device there is none.
        known = first.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = tensor.detach()
        else:
            tied[name] = known
    return tensors, tied


def _by_module(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Module paths and their own tensors by full name, in state-dict order."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = tensor
    yield from groups.items()


def layer_of(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The element of the outermost list that ``path`` lies in, "model.layers.3"; None outside of lists."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        if isinstance(modules.get(".".join(parts[:depth])), nn.ModuleList):
            return ".".join(parts[: depth + 1])
    return None


def _stacked(module: nn.Module, own: Mapping[str, torch.Tensor]) -> list[str]:
    """Full names of the parameters that hold one slice per expert."""
    if not is_experts(module):
        return []
    parameters = dict(module.named_parameters(recurse=False))
    return [
        name
        for name, tensor in own.items()
        if name.rpartition(".")[2] in parameters and tensor.dim() > 0 and tensor.shape[0] == module.num_experts
    ]


def _is_unit(module: nn.Module) -> bool:
    """Whether ``module`` is computed as one: nothing below it holds weights; activation functions and the like do not.

    Not a convolution: in language models these are small, and fast paths reach for their weights without calling them.
    """
    return not isinstance(module, nn.modules.conv._ConvNd) and not any(
        child.state_dict(keep_vars=True) for child in module.children()
    )


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    return name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes


def _gather(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Runs of entries of at most RESIDENT_BLOCK bytes; a larger entry has one of its own."""
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
    extents = _in_a_row((id_, length) for id_, *_, length in placed)
    for (id_, resident, tensors, _), extent in zip(placed, extents, strict=True):
        yield Block(id_, extent, "", tensors, resident)


def relaid(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """``blocks`` with new places for encoded tensors, and so for all that lies behind them; tensors that are stored as
    they are keep their addresses."""
    placed = []
    for block in blocks:
        entries = [(spec.name, spec.dtype, spec.shape, spec.length) for spec in block.tensors]
        addresses = {spec.name: spec.offset for spec in block.tensors if spec.packing is None}
        places, length = place_tensors(entries, addresses)
        tensors = tuple(replace(spec, offset=at.offset) for spec, at in zip(block.tensors, places, strict=True))
        placed.append((replace(block, tensors=tensors), max(length, PAGE)))
    extents = _in_a_row((block.id, length) for block, length in placed)
    return tuple(replace(block, extent=extent) for (block, _), extent in zip(placed, extents, strict=True))


def _in_a_row(lengths: Iterable[tuple[BlockId, int]]) -> Iterator[Extent]:
    """Extents of blocks of these lengths, one after the other, in files of at most FILE_LIMIT bytes."""
    file = offset = 0
    for block, length in lengths:
        if offset and offset + length > FILE_LIMIT and block.kind != "residual":
            file, offset = file + 1, 0
        yield Extent(file, offset, length)
        offset += length
