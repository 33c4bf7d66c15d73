"""The experts that every token of a text went through, and how likely the routers found all of them (pure)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...tiering.errors import TraceError
from ...tiering.units import BlockId

STEPS = 16
"""Codes of a probability for each factor of two."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """One experts layer: the module's ``path``, its number of ``experts``, and the experts that the tokens chose."""

    path: str
    experts: int
    chosen: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """[tokens, top_k]; the number ``experts`` means "no expert"."""
    codes: Codes | None
    """Router probabilities of all experts, [tokens, experts], encoded by ``encode``; None where the router's output was
    not recognised."""

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return int(self.chosen.shape[1])

    def probabilities(self) -> npt.NDArray[np.float32] | None:
        """Router probabilities of all experts, [tokens, experts]; see ``encode`` for how exact they are."""
        return None if self.codes is None else decode(self.codes)

    def used(self) -> npt.NDArray[np.bool_]:
        """[tokens, experts]: whether the token went through the expert."""
        table = np.zeros((len(self.chosen), self.experts + 1), dtype=np.bool_)
        np.put_along_axis(table, self.chosen.astype(np.int64), True, axis=1)
        return table[:, :-1]


@dataclass(frozen=True, slots=True)
class RoutedTokens:
    """The tokens of a text, and the experts that they went through. All layers have the same tokens, in the order in
    which the model saw them."""

    model_type: str
    text: str
    """The name of the text."""
    layers: tuple[RoutedLayer, ...]
    forwards: tuple[int, ...]
    """Tokens of each forward: a prompt is one forward, a decoded token too."""
    sequences: tuple[int, ...]
    """Tokens of each sequence; a sequence begins where a forward does."""

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return sum(self.forwards)

    def steps(self) -> Iterator[list[tuple[BlockId, ...]]]:
        """For each token, as if decoded one by one, the experts of each layer in ascending order."""
        tables = [
            ([BlockId("expert", layer.path, expert) for expert in range(layer.experts)], np.sort(layer.chosen).tolist())
            for layer in self.layers
        ]
        for token in range(self.tokens):
            yield [
                tuple(blocks[expert] for expert in dict.fromkeys(rows[token]) if expert < len(blocks))
                for blocks, rows in tables
            ]

    def uses_digest(self) -> str:
        """SHA-256 of how many tokens used each expert."""
        uses = [(layer.path, layer.used().sum(0).tolist()) for layer in self.layers]
        return hashlib.sha256(json.dumps(uses).encode()).hexdigest()

    def check_model(self, experts: Mapping[str, int], name: str) -> None:
        """Raise TraceError unless the model called ``name``, with ``experts`` experts by module path, is the kind of
        model that was recorded."""
        own = {layer.path: layer.experts for layer in self.layers}
        if own == dict(experts):
            return
        path = min(own.items() ^ experts.items())[0]
        raise TraceError(
            f"this routing trace is of another model ({self.model_type}): {path} has {own.get(path, 'no')} experts in "
            f"it, and {experts.get(path, 'no')} in {name}; record one of this model with: penstock profile"
        )


def encode(probabilities: npt.NDArray[np.float32]) -> Codes:
    """Probabilities in one byte each: 16 codes for each factor of two, so within 2.2 % down to 2 ** -15.9. Smaller ones
    count as that."""
    with np.errstate(divide="ignore"):
        codes: Codes = np.clip(np.rint(-STEPS * np.log2(probabilities)), 0, 255).astype(np.uint8)
    return codes


def decode(codes: Codes) -> npt.NDArray[np.float32]:
    """The probabilities that ``encode`` was given, rounded."""
    return np.exp2(np.divide(codes, -STEPS, dtype=np.float32))


def narrow(chosen: npt.NDArray[np.integer[Any]], experts: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """``chosen`` in the smallest type that can hold every expert's number, and "no expert"."""
    return chosen.astype(np.uint8) if experts <= 0xFF else chosen.astype(np.uint16)
