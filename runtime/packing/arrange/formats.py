"""The weight format of each matrix of a model: a general one, and rules for parts of models."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ....kernels.formats.registry import FORMATS
from ....tiering.store.bundle.manifest import Block, TensorSpec
from ...checkpoints.layout import Layout
from ...checkpoints.modules import is_product, is_transposed
from ...checkpoints.weights import SourceFormat
from ...config.values import FIT, fit_size

AS_IS = "as-is"
"""Every number as the checkpoint has it."""
SHORT: Mapping[str, str] = {"int4": "int4-32"}
"""Names that leave something out."""
WHOLE: Mapping[str, str] = {"nested": "int8", "stacked": "int8"}
"""The same numbers in one plane."""

T = TypeVar("T")

Key = str | tuple[str, int]
"""A matrix by its name, the matrices of all experts alike, or that of one expert by name and expert."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Names of formats: ``format`` for all matrices, the others for those of one part of the model, where given.
    ``format`` may be ``fit:SIZE``: runtime/packing/arrange/size_target.py finds a format for each
    matrix of which no other rule tells it.

    ``attention`` is what lies in a module whose class is called so, ``output`` the output layer, ``embeddings`` what
    is read by row; they stay as they are if nothing else is said, for a token reads one row of them. ``dense`` is all
    the rest that is not an expert.
    """

    format: str = AS_IS
    experts: str | None = None
    attention: str | None = None
    dense: str | None = None
    embeddings: str | None = None
    output: str | None = None

    def of(self, part: str) -> str:
        """The format of ``part``, the name of a field. What is not an expert is always read whole, in one plane."""
        name = getattr(self, part) or (AS_IS if part == "embeddings" else self.format)
        if name == self.format and self.size is not None:
            return f"{FIT}{self.size}"
        return SHORT.get(name, name) if part in ("format", "experts") else WHOLE.get(name, SHORT.get(name, name))

    @property
    def size(self) -> int | None:
        """Bytes that the whole bundle is to fit in, if ``format`` says so."""
        return fit_size(self.format)

    @property
    def changing(self) -> bool:
        """Whether any matrix gets a format that does not keep every bit."""
        names = {self.of(field.name) for field in fields(self)}
        return any(name not in FORMATS or not FORMATS[name].exact for name in names - {AS_IS})

    def __str__(self) -> str:
        """As the manifest has it: equal for rules that say the same."""
        parts = {field.name: self.of(field.name) for field in fields(self)}
        general = parts.pop("format")
        usual = {part: AS_IS if part == "embeddings" else general for part in parts}
        said = [f"{part}={name}" for part, name in parts.items() if name != usual[part]]
        return ",".join([general, *said])


@dataclass(frozen=True, slots=True)
class Choice:
    """The ``format`` of a matrix. ``transposed``: rows are its inputs, so its transpose is encoded. ``planes``: how
    many of the format's planes are stored, the first ones. All if not given."""

    format: str
    transposed: bool = False
    planes: int | None = None


def shape_of(spec: TensorSpec, choice: Choice) -> tuple[int, int]:
    """The shape [n, k] of what is encoded of ``spec``."""
    rows, columns = spec.shape
    return (columns, rows) if choice.transposed else (rows, columns)


def of_matrix(table: Mapping[Key, T], name: str, expert: int | None) -> T | None:
    """What ``table`` has for a matrix, of ``expert`` if it is one's."""
    own = None if expert is None else table.get((name, expert))
    return table.get(name) if own is None else own


def choose_formats(
    model: PreTrainedModel, plan: Layout, rules: Rules, stored: Mapping[str, SourceFormat] | None = None
) -> dict[str, Choice]:
    """The formats of matrices in ``plan`` of ``model``, by name. Matrices that stay as they are are left out. Matrices
    that the source has ``stored`` quantised keep its format if no other is asked for.

    Only weights of linear layers, embeddings and experts are encoded: what other code does with its weights is not
    known.
    """
    modules = dict(model.named_modules())
    output = _path_of(model, model.get_output_embeddings())
    shared = set(plan.tied.values())
    found: dict[str, Choice] = {}
    for block in plan.blocks:
        if block.resident:
            continue
        module = modules[block.id.module]
        for spec in block.tensors:
            if len(spec.shape) != 2 or not is_product(module, spec.name, getattr(torch, spec.dtype)):
                continue
            part = _part(model, block, module, output, shared=spec.name in shared)
            source = (stored or {}).get(spec.name)
            if (name := rules.of(part)) != AS_IS:
                found[spec.name] = Choice(name, is_transposed(module))
            elif source is not None and part != "embeddings":  # rows that are read one by one are numbers
                found[spec.name] = Choice(source.format, source.transposed)
    return found


def _part(model: PreTrainedModel, block: Block, module: nn.Module, output: str | None, *, shared: bool) -> str:
    if block.id.kind == "expert":
        return "experts"
    if block.id.module == output or (isinstance(module, nn.Embedding) and shared):
        return "output"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    above = block.id.module.split(".")
    around = (type(model.get_submodule(".".join(above[:depth]))).__name__ for depth in range(1, len(above)))
    return "attention" if any("Attention" in name for name in around) else "dense"


def _path_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((path for path, module in model.named_modules() if module is wanted), None)
