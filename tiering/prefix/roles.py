"""What the tensors of a stored prefix are for, and how large that makes them (pure).

A file says it of each tensor. It is believed only where it is what the model would have written, in that order: see
``layout_of``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import prod
from typing import Any

from ..driving.strict_json import Fields, many, whole
from ..units import PAGE, align_up

KEYS, VALUES = "keys", "values"
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""Bytes of a number, by the dtype that it may have: that of ``torch.<dtype>``."""

_STATES = ("conv", "recurrent")
_LAYERS, _PARTS, _INDICES, _DIMENSION = 1 << 14, 1 << 15, 1 << 8, 1 << 31
_LARGEST = 1 << 50


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is for: of ``layer`` the "keys", "values", or the state "conv" or "recurrent" number ``index``."""

    layer: int
    kind: str
    index: int = 0

    @property
    def is_kv(self) -> bool:
        """Whether it is keys or values."""
        return self.kind in (KEYS, VALUES)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.layer}.{self.kind}" if self.is_kv else f"{self.layer}.{self.kind}.{self.index}"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: ``dtype`` as in ``torch.<dtype>``, little-endian, contiguous.

    Keys and values of a block are [heads, tokens, size of a head]. A state is of one sequence: its first dimension is
    1. Keys and values of a layer with a window are [1, heads, tokens, size of a head], the tokens being the last ones.
    """

    role: Role
    dtype: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """For people."""
        return self.role.name

    @property
    def length(self) -> int:
        """Bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def room(self) -> int:
        """Bytes of the tensor in the file."""
        return align_up(self.length, PAGE)

    def to_json(self) -> dict[str, Any]:
        """What ``parse_parts`` and ``parse_state_parts`` take."""
        role = self.role
        return {
            "layer": role.layer,
            "kind": role.kind,
            "index": role.index,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }


def parse_parts(value: object, block: int) -> tuple[StoredTensor, ...]:
    """The tensors of each block of ``block`` tokens. Raises ValueError for any that no model has."""
    parts = many(value, partial(_tensor, kinds=(KEYS, VALUES)), _PARTS, "parts")
    for part in parts:
        if len(part.shape) != 3 or part.shape[1] != block:
            raise ValueError(f"{part.name} has not the shape of {block} tokens")
    _check_pairs(parts)
    return parts


def parse_state_parts(value: object, tokens: int) -> tuple[StoredTensor, ...]:
    """The tensors of a state behind ``tokens`` tokens. Raises ValueError for any that no model has."""
    parts = many(value, partial(_tensor, kinds=(KEYS, VALUES, *_STATES)), _PARTS, "state_parts")
    for part in parts:
        if not part.shape or part.shape[0] != 1:
            raise ValueError(f"{part.name} is not of one sequence")
        if part.role.is_kv and (len(part.shape) != 4 or part.shape[2] > tokens):
            raise ValueError(f"{part.name} has not the shape of keys or values of {tokens} tokens")
    _check_pairs([part for part in parts if part.role.is_kv])
    roles = [part.role for part in parts]
    if len(set(roles)) != len(roles) or [role.layer for role in roles] != sorted(role.layer for role in roles):
        raise ValueError("the state has a tensor twice, or in another order than its layers")
    return parts


def layout_of(parts: Sequence[StoredTensor], state_parts: Sequence[StoredTensor]) -> str:
    """Names what does not depend on the prompt: layers, kinds, order, dtypes, heads, sizes. What a model writes has the
    same layout for each prompt; a file with another one is not by that model."""
    rows: list[list[Any]] = []
    for part in (*parts, *state_parts):
        shape: list[int | str] = [*part.shape]
        if part.role.is_kv:
            shape[-2] = "tokens"
        rows.append([part.role.layer, part.role.kind, part.role.index, part.dtype, shape])
    return sha256(json.dumps([len(parts), rows]).encode()).hexdigest()


def _tensor(value: object, kinds: Sequence[str]) -> StoredTensor:
    fields = Fields(value)
    layer = fields.whole("layer", 0, _LAYERS)
    kind = fields.text("kind", "|".join(kinds))
    index = fields.whole("index", 0, 0 if kind in (KEYS, VALUES) else _INDICES)
    dtype = fields.text("dtype", "|".join(ITEM_BYTES))
    shape = fields.many("shape", lambda size: whole(size, 0, _DIMENSION, "a dimension"), 8)
    fields.end()
    if prod(shape) > _LARGEST:
        raise ValueError(f"{layer}.{kind} is larger than any file")
    return StoredTensor(Role(layer, kind, index), dtype, shape)


def _check_pairs(parts: Sequence[StoredTensor]) -> None:
    """Keys, then values, of one layer after the other, with as many tokens."""
    roles = [part.role for part in parts]
    layers = [role.layer for role in roles[::2]]
    if roles != [Role(layer, kind) for layer in layers for kind in (KEYS, VALUES)] or layers != sorted(set(layers)):
        raise ValueError("keys and values are not those of one layer after the other")
    for keys, values in zip(parts[::2], parts[1::2], strict=True):
        if keys.shape[-2] != values.shape[-2]:
            raise ValueError(f"{keys.name} and {values.name} have other tokens")
