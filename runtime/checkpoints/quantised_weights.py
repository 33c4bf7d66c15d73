"""The weights of a checkpoint with quantised weights: the quantised ones as planes, all of them as numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist

from .checkpoint_weights import CheckpointWeights
from .convert import Group
from .files.safetensors_file import SourceTensor
from .layout import Layout
from .quantisation.quantised_tensor import QuantisedTensor, plane, slabs, stacked_format
from .weights import SourceFormat, as_bytes


@dataclass(frozen=True, slots=True)
class _Stack:
    """The source of each row of a weight, or of one expert's slice if the weight holds a slice per expert.

    ``rows``, int64 [n, 2], has the source and row of each. None stands for all rows of the only source.
    """

    group: Group
    rows: torch.Tensor | None
    stored: SourceFormat


class QuantisedWeights(CheckpointWeights):
    """As CheckpointWeights, for ``tensors`` with some QuantisedTensor. Their pieces are the decoded numbers."""

    def __init__(
        self, model: PreTrainedModel, tensors: Mapping[str, SourceTensor], layout: Layout, *, memory: int
    ) -> None:
        super().__init__(model, tensors, layout, memory=memory)
        experts = {spec.name for block in layout.blocks if block.id.kind == "expert" for spec in block.tensors}
        self._stacks: dict[str, _Stack] = {}
        for name in self._shapes:
            group = self._groups.get(self._found_as.get(name, name))
            if group is not None and (stack := self._stack(group, name, name in experts)) is not None:
                self._stacks[name] = stack

    def stored(self) -> dict[str, SourceFormat]:
        """The formats of the weights that ``plane`` can give as planes, by name."""
        return {name: stack.stored for name, stack in self._stacks.items()}

    def plane(self, name: str, expert: int | None) -> Iterator[memoryview]:
        """Yield the plane of a weight in ``stored``, or of one expert's slice of it, in one piece. Its numbers are
        those of the checkpoint: nothing is quantised again."""
        stack = self._stacks[name]
        sources = [source for source in stack.group.sources_of(expert) if isinstance(source, QuantisedTensor)]
        lines = [source.lines(self._whole) for source in sources]
        yield as_bytes(plane(stack.stored.format, lines, stack.rows, sources[0].matrix[1]))

    def _stack(self, group: Group, name: str, one_of_many: bool) -> _Stack | None:
        """Return how the weight ``name`` is stacked from quantised rows. None if it is made in another way."""
        if one_of_many and group.transform is not None and not group.by_expert:
            return None
        sources = [each for each in group.sources_of(0 if one_of_many else None) if isinstance(each, QuantisedTensor)]
        if len(sources) != len(group.sources_of(0 if one_of_many else None)) or not sources:
            return None
        rows = None
        if group.transform is not None:
            rows = self._rows(group, name, 0 if one_of_many else None)
            if rows is None or any(source.transposed for source in sources):
                return None
        format_name = stacked_format(sources, rows)
        experts = range(self._shapes[name][0]) if one_of_many else [None]
        if format_name is None or not all(self._in_one_order(group.sources_of(expert)) for expert in experts):
            return None
        for expert in experts:  # the first decides for all
            others = [each for each in group.sources_of(expert) if isinstance(each, QuantisedTensor)]
            if len(others) != len(sources) or stacked_format(others, rows) != format_name:
                return None
        return _Stack(group, rows, SourceFormat(format_name, sources[0].transposed))

    def _rows(self, group: Group, name: str, expert: int | None) -> torch.Tensor | None:
        """Find source and row of each row, by converting a table of them. None if more than rows are moved."""
        if not all(
            type(operation) in (MergeModulelist, Concatenate, Chunk) for operation in group.transform.operations
        ):
            return None
        numbers: dict[str, int] = {}

        def table(source: SourceTensor, dtype: torch.dtype, one: int | None) -> torch.Tensor:
            rows = torch.arange(source.shape[-2])
            number = torch.full_like(rows, numbers.setdefault(source.name, len(numbers)))
            made = torch.stack((number, rows), 1)
            return made if one is None else made[None]

        made = group.convert(self._model, table, expert)[name]
        made = made if expert is None else made[0]
        return made if made.shape == (self._shapes[name][-2], 2) else None

    def _in_one_order(self, sources: list[SourceTensor]) -> bool:
        """Return whether quantised ``sources`` have their columns in the same order."""
        orders = [source.order for source in sources if isinstance(source, QuantisedTensor)]
        if len(orders) == 1 or orders[0] is None:
            return True
        first, *others = (self._whole(order) for order in orders if order is not None)
        return all(torch.equal(first, other) for other in others)

    def _whole(self, source: SourceTensor) -> torch.Tensor:
        return self._load(source, source.dtype, None)

    def _read(self, source: SourceTensor, dtype: torch.dtype) -> Iterator[memoryview]:
        if not isinstance(source, QuantisedTensor):
            yield from super()._read(source, dtype)
            return
        for matrix in [source] if len(source.shape) == 2 else map(source.part, range(source.shape[0])):
            yield from self._numbers(matrix, dtype)

    def _numbers(self, source: QuantisedTensor, dtype: torch.dtype) -> Iterator[memoryview]:
        """Decode the numbers of one matrix."""
        n, k = source.matrix
        decode = source.numbers(self._whole)
        for rows in slabs(n, n if source.transposed else self._chunk // (k * dtype.itemsize)):
            numbers = decode(rows).to(dtype)
            yield as_bytes(numbers.t().contiguous() if source.transposed else numbers)
