"""The weights of a safetensors checkpoint as a model's modules hold them, converted piece by piece."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import xxhash
from transformers import PreTrainedModel

from ...tiering.errors import BudgetTooSmall, CheckpointError
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import KiB, format_size
from .convert import Group, initial_value, may_be_absent, plan
from .files.safetensors_file import SourceTensor
from .files.source_file import SourceFile
from .layout import Layout
from .weights import CHUNK, PlainWeights, as_bytes, split_bytes


class CheckpointWeights(PlainWeights):
    """The weights of a skeleton ``model`` from a checkpoint's ``tensors``, within ``memory`` bytes.

    Raises CheckpointError when weights are missing, and BudgetTooSmall when a conversion does not fit into memory.
    """

    def __init__(
        self, model: PreTrainedModel, tensors: Mapping[str, SourceTensor], layout: Layout, *, memory: int
    ) -> None:
        self._model = model
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        stacked = {
            spec.name: self._shapes[spec.name][0]
            for block in layout.blocks
            if block.id.kind == "expert"
            for spec in block.tensors
        }
        self._groups = plan(model, tensors, stacked)
        self._layout = layout
        # Tied weights may be in the checkpoint under any of their names.
        self._found_as = {
            name: alias for alias, name in layout.tied.items() if alias in self._groups and name not in self._groups
        }
        self._check_complete()
        # Never less than a few pages, or a checkpoint of a few kilobytes would be packed byte by byte.
        self._chunk = max(64 * KiB, min(CHUNK, memory // 8))
        self._room = memory - 2 * self._chunk
        self._check_memory()
        self._scratch = torch.empty(self._chunk, dtype=torch.uint8)
        self._files: dict[Path, SourceFile] = {}
        self._converted: OrderedDict[tuple[str, int | None], dict[str, torch.Tensor]] = OrderedDict()

    def contradictions(self) -> list[tuple[str, str]]:
        """Pairs of names that the model ties, for which the checkpoint has different weights."""
        specs = {spec.name: spec for block in self._layout.blocks for spec in block.tensors}
        both = [(alias, name) for alias, name in self._layout.tied.items() if {alias, name} <= self._groups.keys()]
        return [
            (alias, name)
            for alias, name in both
            if self._checksum(specs[name]) != self._checksum(replace(specs[name], name=alias))
        ]

    @property
    def used(self) -> frozenset[str]:
        """The tensors of the checkpoint that some weight of the model is made of, by their names there."""
        groups = {id(group): group for group in self._groups.values()}.values()
        return frozenset(source.name for group in groups for source in group.sources_of(None))

    def addresses(self) -> dict[str, int]:
        """Where transformers has each weight that it takes as it is: at its place in the file, which it maps."""
        found: dict[str, int] = {}
        for name in self._shapes:
            group = self._groups.get(self._found_as.get(name, name))
            if group is not None and group.transform is None:
                (source,) = next(iter(group.sources.values()))
                if source.dtype == group.dtype and source.offset % group.dtype.itemsize == 0:
                    found[name] = source.offset
        return found

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader."""
        name = self._found_as.get(spec.name, spec.name)
        dtype = getattr(torch, spec.dtype)
        if name not in self._groups:
            yield from split_bytes(initial_value(self._model, name), self._chunk)
            return
        group = self._groups[name]
        if group.transform is None:
            (source,) = next(iter(group.sources.values()))
            yield from self._read(source if expert is None else source.part(expert), dtype)
            return
        made = self._convert(group, name, expert)
        if expert is None:
            tensor = made.pop(name)
        elif group.by_expert:
            tensor = made.pop(name)[0]
        else:
            last = expert == len(made[name]) - 1
            tensor = (made.pop(name) if last else made[name])[expert]
        yield from split_bytes(tensor.to(dtype).contiguous(), self._chunk)

    def expect(self, block: Block) -> None:
        """As WeightReader."""
        room = self._chunk
        expert = block.id.expert
        for spec in block.tensors:
            group = self._groups.get(self._found_as.get(spec.name, spec.name))
            for source in group.sources_of(expert) if group else ():
                step = min(room, source.length)
                self._file(source.file).expect(source.offset, step)
                room -= step

    def close(self) -> None:
        """As WeightReader."""
        for file in self._files.values():
            file.close()
        self._converted.clear()

    def _checksum(self, spec: TensorSpec) -> str:
        digest = xxhash.xxh3_128()
        for piece in self.pieces(spec, None):
            digest.update(piece)
        return digest.hexdigest()

    def _convert(self, group: Group, name: str, expert: int | None) -> dict[str, torch.Tensor]:
        """The group's results that were not taken yet, kept for as long as there is room: several modules may share
        a group."""
        key = (group.first, expert if group.by_expert else None)
        if name in self._converted.get(key, ()):
            self._converted.move_to_end(key)
            return self._converted[key]
        needed = _needed(group)
        for spent in [known for known, made in self._converted.items() if not made]:
            del self._converted[spent]
        while self._converted and needed + self._held() > self._room:
            self._converted.popitem(last=False)
        result = group.convert(self._model, self._load, expert)
        self._converted[key] = result
        return result

    def _held(self) -> int:
        return sum(tensor.nbytes for made in self._converted.values() for tensor in made.values())

    def _load(self, source: SourceTensor, dtype: torch.dtype, expert: int | None) -> torch.Tensor:
        """A tensor of the checkpoint; with ``expert`` that slice, with a first dimension of one."""
        shape = source.shape if expert is None else (1, *source.shape[1:])
        result = torch.empty(shape, dtype=dtype)
        into, done = as_bytes(result), 0
        for piece in self._read(source if expert is None else source.part(expert), dtype):
            into[done : done + len(piece)] = piece
            done += len(piece)
        return result

    def _read(self, source: SourceTensor, dtype: torch.dtype) -> Iterator[memoryview]:
        """The tensor's bytes as ``dtype``, a chunk at a time."""
        file = self._file(source.file)
        # A wider dtype must not make a chunk larger.
        step = self._chunk // max(1, dtype.itemsize // source.dtype.itemsize)
        step -= step % source.dtype.itemsize
        for start in range(0, source.length, step):
            raw = self._scratch[: min(step, source.length - start)]
            file.expect(source.offset + start + step, min(step, max(0, source.length - start - step)))
            file.read(source.offset + start, as_bytes(raw))
            yield as_bytes(raw if dtype == source.dtype else raw.view(source.dtype).to(dtype))

    def _file(self, path: Path) -> SourceFile:
        if path not in self._files:
            self._files[path] = SourceFile(path)
        return self._files[path]

    def _check_complete(self) -> None:
        needed = dict.fromkeys(spec.name for block in self._layout.blocks for spec in block.tensors)
        there = self._groups.keys() | self._found_as.keys()
        missing = [name for name in needed if name not in there and not may_be_absent(self._model, name)]
        if missing:
            rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(missing[:5])}{rest}, which the model needs; "
                f"is it a checkpoint of a {type(self._model).__name__}?"
            )

    def _check_memory(self) -> None:
        converted = {id(g): g for g in self._groups.values() if g.transform is not None}
        largest = max(converted.values(), key=_needed, default=None)
        if largest is not None and _needed(largest) > self._room:
            least = _needed(largest) + 2 * CHUNK
            raise BudgetTooSmall(
                f"packing converts {largest.first} as a whole and needs {format_size(least)} for it; "
                f"raise host_memory to at least that"
            )


def _needed(group: Group) -> int:
    """Bytes that converting takes: each operation holds what it takes and what it makes."""
    return 2 * group.nbytes(0)
