"""How much a configuration may ask for (pure). The files beside it decide: nothing is built for absurd numbers."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....tiering.units import format_size

_LAYERS = re.compile(r"(^|_)n?_?(hidden_|encoder_|decoder_|predict_)?(layers?|depths?|blocks)$")
_EXPERTS = re.compile(r"(^|_)n?_?(local_|routed_|shared_|moe_)*experts$")
_LISTED = re.compile(r"^(num_labels|first_k_dense_replace)$")
"""Numbers of which configurations make a list."""
_NOT_COUNTS = re.compile(r"_per_|_in_|_by_|last_|start|every|interval")

_SMALLEST, _TO_EACH = 10_000, 64
"""Modules and weights of the smallest models, and of others for each matrix in their files: those with several to one,
as with experts that the files have stacked."""
_EXPERTS_OF_SMALLEST, _EXPERT_BYTES = 16_384, 1024
_PARTS = 16
"""Tensors that a quantised weight may be made of."""
_MATRIX_BYTES = 256
"""The fewest bytes of an expert, and of a matrix of a stack."""


def most_tensors(weights: Iterable[tuple[int, ...]]) -> int:
    """The most tensors that a checkpoint of ``weights``, given by their shapes, may have: some for each, for each slice
    of a stack, and those of other things, such as towers."""
    return _SMALLEST + _PARTS * sum(shape[0] if len(shape) > 2 else 1 for shape in weights)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most ``layers``, ``parts`` (modules and weights) and ``experts`` in all layers that ``held`` justifies, which
    says what there is in words."""

    held: str
    layers: int
    parts: int
    experts: int

    @classmethod
    def of_tensors(cls, tensors: Iterable[tuple[tuple[int, ...], int]]) -> "Bounds":
        """From the shapes and bytes of what files hold."""
        count = matrices = total = 0
        for shape, length in tensors:
            count += 1
            total += length
            matrices += min(shape[0], 1 + length // _MATRIX_BYTES) if len(shape) > 2 else 1
        return cls(
            f"the files hold {count} tensors of {format_size(total)} in all",
            max(count, WITHOUT_FILES.layers),
            _SMALLEST + _TO_EACH * matrices,
            _EXPERTS_OF_SMALLEST + total // _EXPERT_BYTES,
        )


WITHOUT_FILES = Bounds("no model has so many", layers=1024, parts=500_000, experts=1 << 20)
"""For a configuration without weights."""


def absurd(config: Mapping[str, Any], bounds: Bounds) -> str | None:
    """What ``config``, as in its file, asks for beyond ``bounds``, in words; None if nothing."""
    return next(_absurd(config, bounds), None)


def _absurd(config: Mapping[str, Any], bounds: Bounds) -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _absurd(value, bounds)
        elif isinstance(value, float | int) and not _NOT_COUNTS.search(key):
            for pattern, most in ((_LAYERS, bounds.layers), (_EXPERTS, bounds.experts), (_LISTED, WITHOUT_FILES.parts)):
                if pattern.search(key) and value > most:
                    yield f"{key} is {value}, and {bounds.held}"
