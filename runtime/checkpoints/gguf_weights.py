"""The weights of a GGUF file: those that fit as planes, in the file's own blocks, and all of them as numbers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ...tiering.errors import CheckpointError
from ...tiering.store.bundle.manifest import Block, TensorSpec
from .convert import initial_value, may_be_absent
from .files.gguf_file import GgufFile, GgufTensor
from .files.source_file import SourceFile
from .layout import Layout
from .weights import CHUNK, SourceFormat, as_bytes, split_bytes


@dataclass(frozen=True, slots=True)
class _Source:
    """The tensors whose rows are a weight's, one after the other; in ``order``, int64 [rows], if they are not in the
    weight's. ``changed``: transformers makes the weight from the numbers of the only one, as a whole."""

    tensors: tuple[GgufTensor, ...]
    order: torch.Tensor | None = None
    changed: bool = False

    @property
    def format(self) -> str | None:
        """The format that stores the weight as the file has it."""
        formats = {tensor.format for tensor in self.tensors}
        return formats.pop() if len(formats) == 1 and not self.changed else None


class GgufWeights:
    """The weights of a skeleton ``model`` from ``file``. Raises CheckpointError when some are missing or misshapen."""

    def __init__(self, model: PreTrainedModel, file: GgufFile, layout: Layout) -> None:
        self._model, self._gguf = model, file
        self._reader = SourceFile(file.path)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._sources = {
            name: self._source(name, [file.tensors[own] for own in tensors])
            for name, tensors in file.names(model).items()
        }
        specs = {spec.name for block in layout.blocks for spec in block.tensors}
        tied = {name: alias for alias, name in layout.tied.items() if alias in self._sources}
        for name in specs - self._sources.keys():
            if name in tied:
                self._sources[name] = self._sources[tied[name]]
            elif not may_be_absent(model, name):
                raise CheckpointError(f"{file.path} lacks {name}, which the model needs")

    @property
    def left_over(self) -> list[str]:
        """The tensors of the file that no weight is made of."""
        used = {tensor.name for source in self._sources.values() for tensor in source.tensors}
        return [name for name in self._gguf.tensors if name not in used]

    def stored(self) -> dict[str, SourceFormat]:
        """The weights that can be stored as the planes that ``plane`` gives, by name."""
        formats = {name: source.format for name, source in self._sources.items() if len(self._shapes[name]) > 1}
        return {name: SourceFormat(format_) for name, format_ in formats.items() if format_ is not None}

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """The plane of a weight in ``stored``, or of one expert's slice of it, in pieces: the file's blocks."""
        source = self._sources[name]
        for tensor in source.tensors:
            one = tensor if expert is None else tensor.part(expert)
            yield from map(as_bytes, self._slabs(one, source.order))

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader."""
        dtype = getattr(torch, spec.dtype)
        if spec.name not in self._sources:
            yield from split_bytes(initial_value(self._model, spec.name).to(dtype), CHUNK)
            return
        source = self._sources[spec.name]
        for tensor in source.tensors:
            one = tensor if expert is None else tensor.part(expert)
            if source.changed:
                rows = self._read(one, 0, one.length // one.row_bytes)
                made = self._gguf.changed(one.numbers(rows).view(one.shape), tensor.name)
                self._check_shape(spec.name, tuple(made.shape))
                yield as_bytes(made.to(dtype).contiguous())
            else:
                for rows in self._slabs(one, source.order):
                    yield as_bytes(one.numbers(rows).to(dtype))

    def expect(self, block: Block) -> None:
        """As WeightReader."""
        expert = block.id.expert
        for spec in block.tensors:
            source = self._sources.get(spec.name)
            for tensor in source.tensors if source else ():
                one = tensor if expert is None else tensor.part(expert)
                self._reader.expect(one.offset, min(CHUNK, one.length))

    def close(self) -> None:
        """As WeightReader."""
        self._reader.close()

    def _source(self, name: str, tensors: list[GgufTensor]) -> _Source:
        first, *others = tensors
        shape = self._shapes[name]
        if others or len(first.shape) > 2:
            # Experts: their rows lie as the weight has them, gates above the rest.
            if any(len(t.shape) != 3 or t.shape[::2] != first.shape[::2] for t in tensors):
                names = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)
                raise CheckpointError(f"{self._gguf.path} has {names}, and the model has {list(shape)} of them")
            experts, _, columns = first.shape
            self._check_shape(name, (experts, sum(tensor.shape[1] for tensor in tensors), columns))
            return _Source(tuple(tensors))
        order = self._gguf.row_order(first) if len(first.shape) == 2 and first.shape == shape else None
        if order is None:
            return _Source((first,), changed=True)
        return _Source((first,), None if torch.equal(order, torch.arange(len(order))) else order)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if shape != self._shapes[name]:
            raise CheckpointError(
                f"{self._gguf.path} has {name} as {list(shape)}, and its sizes (embedding_length, head_count, "
                f"vocab_size, ...) ask for {list(self._shapes[name])}; fetch it again"
            )

    def _slabs(self, tensor: GgufTensor, order: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """uint8 [rows, row_bytes] of all of ``tensor``, some rows at a time; in ``order``, if given. That moves rows
        within an attention head, so those of a slab lie close together."""
        count, step = tensor.length // tensor.row_bytes, max(1, CHUNK // (4 * tensor.shape[-1]))
        for start in range(0, count, step):
            if order is None:
                yield self._read(tensor, start, min(start + step, count))
                continue
            wanted = order[start : start + step]
            first = int(wanted.min())
            yield self._read(tensor, first, int(wanted.max()) + 1)[wanted - first]

    def _read(self, tensor: GgufTensor, start: int, stop: int) -> torch.Tensor:
        """uint8 [stop - start, row_bytes]: these rows of ``tensor``."""
        rows = torch.empty(stop - start, tensor.row_bytes, dtype=torch.uint8)
        self._reader.read(tensor.offset + start * tensor.row_bytes, as_bytes(rows))
        return rows
