"""Conversion of checkpoint tensors to module tensors, by transformers' own code, group by group.

``convert_and_load_state_dict_in_model`` of transformers groups the checkpoint's tensors by the weight that they become
and then converts group after group. ``plan`` groups in the same way, on names and shapes only; ``Group.convert``
converts one group, or one expert of it where the operations treat experts alike.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

from ...tiering.errors import CheckpointError
from .files.bounds import most_tensors
from .files.failures import reason
from .files.safetensors_file import SourceTensor
from .quantisation.fp8_layouts import FLOAT8
from .quantisation.quantised_tensor import QuantisedTensor, UnreadableTensor

Load = Callable[[SourceTensor, torch.dtype, int | None], torch.Tensor]
"""Loads a tensor as a dtype. With a number, only that slice of the first dimension: [1, ...]."""


@dataclass(slots=True)
class Group:
    """Tensors of a checkpoint that become one or several weights of ``dtype``.

    ``sources`` are the tensors by the pattern that they match; ``transform`` is None for a pure renaming of the only
    source. ``targets`` are the names and shapes of the results. ``by_expert`` says that each expert can be converted
    alone.
    """

    first: str
    dtype: torch.dtype
    transform: Any = None
    sources: dict[str, list[SourceTensor]] = field(default_factory=dict)
    targets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    by_expert: bool = False

    def nbytes(self, expert: int | None = None) -> int:
        """Return the bytes of the results, of one expert's if each is converted alone."""
        elements = sum(torch.Size(shape).numel() for shape in self.targets.values())
        if expert is not None and self.by_expert:
            elements //= next(iter(self.targets.values()))[0]
        return elements * self.dtype.itemsize

    def sources_of(self, expert: int | None) -> list[SourceTensor]:
        """Return the tensors to read for the whole group, or for one expert if it is converted alone."""
        lists = list(self.sources.values())
        if expert is None or not (self.by_expert or self.transform is None):
            return [source for sources in lists for source in sources]
        if self.transform is not None and self._listed:
            return [sources[expert] for sources in lists]
        return [sources[0].part(expert) for sources in lists]

    def convert(self, model: PreTrainedModel, load: Load, expert: int | None = None) -> dict[str, torch.Tensor]:
        """Return the results by name. With ``expert``, if ``by_expert``, only its slices: shapes [1, ...]."""
        alone = expert if self.by_expert else None
        collected = self.transform.collected_tensors
        for pattern, sources in self.sources.items():
            # No variable: the operations free their inputs as they go, if nothing else holds them.
            if alone is None:
                collected[pattern] = [load(source, self.dtype, None) for source in sources]
            elif self._listed:
                collected[pattern] = [load(sources[alone], self.dtype, None)]
            else:
                collected[pattern] = [load(sources[0], self.dtype, alone)]
        return self._run(model)

    @property
    def _listed(self) -> bool:
        """Whether the checkpoint has one tensor per expert, which the first operation stacks."""
        return isinstance(self.transform.operations[0], MergeModulelist)

    def dry_run(self, model: PreTrainedModel, *, expert: bool = False) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the results, with ``expert`` of one expert alone. Reads nothing."""
        with torch.device("meta"):
            for pattern, sources in self.sources.items():
                shapes = [source.shape for source in (sources[:1] if expert else sources)]
                if expert and not self._listed:
                    shapes = [(1, *shapes[0][1:])]
                self.transform.collected_tensors[pattern] = [torch.empty(s, dtype=self.dtype) for s in shapes]
            return {name: tuple(tensor.shape) for name, tensor in self._run(model).items()}

    def _run(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        try:
            result = self.transform.convert(self.first, model=model, config=model.config)
        except Exception as error:
            raise CheckpointError(
                f"transformers cannot make {self.first} from the checkpoint's "
                f"{', '.join(s.name for sources in self.sources.values() for s in sources[:1])}: {reason(error)}"
            ) from error
        finally:
            self.transform.collected_tensors.clear()
        return {name: value[0] if isinstance(value, list) else value for name, value in result.items()}


def plan(
    model: PreTrainedModel, tensors: Mapping[str, SourceTensor], stacked: Mapping[str, int] | None = None
) -> dict[str, Group]:
    """Find the group that makes each weight of the skeleton ``model``, by state-dict name.

    ``stacked`` maps the names of weights that hold one slice per expert to the number of experts. Raises
    CheckpointError if a result does not have the shape that the model needs, or its numbers are not known to be ones.
    """
    expected = model.state_dict()
    if len(tensors) > most_tensors(tuple(tensor.shape) for tensor in expected.values()):
        raise CheckpointError(
            f"the checkpoint has {len(tensors)} tensors, and a {type(model).__name__} has {len(expected)} weights; "
            "they do not belong together"
        )
    groups = _group(model, tensors, expected)
    made: dict[str, Group] = {}
    for group in groups:
        _check_numbers(group)
        if group.transform is None:
            (source,) = group.sources[group.first]
            group.targets = {group.first: source.shape}
        else:
            group.targets = group.dry_run(model)
        for name, shape in group.targets.items():
            if name not in expected:
                continue
            if shape != tuple(expected[name].shape):
                raise CheckpointError(
                    f"{name} has shape {list(shape)} in the checkpoint, the model needs {list(expected[name].shape)}; "
                    "the weights do not belong to this config.json, or some are missing"
                )
            made[name] = group
        group.by_expert = group.transform is not None and _separable(group, model, stacked or {})
    return made


def _group(
    model: PreTrainedModel, tensors: Mapping[str, SourceTensor], expected: Mapping[str, torch.Tensor]
) -> list[Group]:
    """Run the loop of ``convert_and_load_state_dict_in_model``, up to the conversion."""
    mapping = get_model_conversion_mapping(model, None, None)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix

    groups: dict[str, Group] = {}
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=expected)
        if name not in expected:
            continue
        if name not in groups:
            transform = None if pattern is None else copy.deepcopy(converter_of[pattern])
            groups[name] = Group(name, expected[name].dtype, transform)
        group = groups[name]
        source = _turn_to_module(tensors[key], model, name)
        if group.transform is not None:
            group.sources.setdefault(key if pattern is None else pattern, []).append(source)
        elif not group.sources:
            group.sources[name] = [source]
    return list(groups.values())


def _turn_to_module(source: SourceTensor, model: PreTrainedModel, name: str) -> SourceTensor:
    """``source`` as the module of the weight ``name`` holds it: a Conv1D has the transpose of what a Linear has."""
    if not isinstance(source, QuantisedTensor) or not source.of_linear:
        return source
    module = model.get_submodule(name.rpartition(".")[0])
    return source.turned() if isinstance(module, Conv1D) else source


def _check_numbers(group: Group) -> None:
    """Raise CheckpointError for a source whose bits are not known to be the numbers of a weight."""
    for source in (source for sources in group.sources.values() for source in sources):
        if isinstance(source, UnreadableTensor):
            raise CheckpointError(f"{source.reason}; fetch the checkpoint again, or take one that is not quantised")
        plain = source.dtype in FLOAT8 or (source.dtype.is_floating_point and source.dtype.itemsize > 1)
        if group.dtype.is_floating_point and not plain and not isinstance(source, QuantisedTensor):
            raise CheckpointError(
                f"{source.name} is {source.dtype}, and the model needs numbers in {group.dtype} there: config.json "
                "does not say how it is quantised; take a checkpoint that does, or one that is not quantised"
            )


def _separable(group: Group, model: PreTrainedModel, stacked: Mapping[str, int]) -> bool:
    """Return whether converting one expert's tensors alone gives that expert's slice of the result."""
    counts = {stacked.get(name) for name in group.targets}
    if len(counts) != 1 or None in counts:
        return False
    (count,) = counts
    first, *rest = group.transform.operations
    if isinstance(first, MergeModulelist):
        if first.dim != 0 or any(len(sources) != count for sources in group.sources.values()):
            return False
    else:
        rest = [first, *rest]
        if any(len(sources) != 1 or sources[0].shape[:1] != (count,) for sources in group.sources.values()):
            return False
    if not all(map(_keeps_experts_apart, rest)):
        return False
    alone = group.dry_run(model, expert=True)
    return alone == {name: (1, *shape[1:]) for name, shape in group.targets.items()}


def _keeps_experts_apart(operation: Any) -> bool:
    """Return whether ``operation`` leaves the first dimension as it is."""
    if type(operation) in (Concatenate, Chunk):
        return operation.dim >= 1 and operation.num_shards_attribute is None
    if type(operation) is Interleave:
        return bool(operation.dim >= 1)
    if type(operation) is Transpose:
        return min(operation.dim0, operation.dim1) >= 1 and not operation.check_dims
    return False


def initial_value(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Make the weight ``name``, which the checkpoint lacks, as transformers does. It is the same each time."""
    path, _, own = name.rpartition(".")
    # A copy with memory for its own weights. Its children stay as they are.
    module = copy.copy(model.get_submodule(path))
    module._parameters = {
        key: None if p is None else torch.nn.Parameter(torch.empty_like(p, device="cpu"), requires_grad=False)
        for key, p in module._parameters.items()
    }
    module._buffers = {
        key: None if b is None else torch.empty_like(b, device="cpu") for key, b in module._buffers.items()
    }
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model._init_weights(module)
    value = getattr(module, own)
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"the checkpoint lacks {name}, and the model gives it no value of its own")
    return value.detach()


def may_be_absent(model: PreTrainedModel, name: str) -> bool:
    """Return whether the model says that checkpoints may lack the weight ``name``."""
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_missing or ())
