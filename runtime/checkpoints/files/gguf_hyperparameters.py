"""Hyper-parameters of a GGUF file, compared with its tensors (pure): what does not fit is named before a model is
built of it."""

import math
import re
from collections.abc import Iterator, Mapping

from .gguf_types import GgufHeader, HeaderTensor, Value

_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_COUNTS: dict[str, str] = {
    "context_length": "",
    "block_count": "",
    "embedding_length": "",
    "vocab_size": "",
    "feed_forward_length": ".ffn_up.",
    "attention.head_count": ".attn_q",
    "attention.head_count_kv": ".attn_k.",
    "attention.key_length": ".attn_k.",
    "attention.value_length": ".attn_v.",
    "rope.dimension_count": "nothing",
    "expert_feed_forward_length": "_exps.",
}
"""What is one natural number, where a file has it as one value; above 0 if there are tensors with this in their names:
models without attention say that they have 0 heads."""
_REAL = (".freq_base", "_epsilon")
_LARGEST = 1 << 31
_SPLIT = ("split.no", "split.count", "split.tensors.count")


def misfit(header: GgufHeader) -> str | None:
    """What of ``header`` cannot be so, with its key; None if nothing."""
    return next(_misfits(header), None)


def parts_of(header: GgufHeader) -> int:
    """The number of files that the model is split into."""
    return int(header.values.get("split.count", 1)) or 1


def _misfits(header: GgufHeader) -> Iterator[str]:
    values, tensors = header.values, header.tensors
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not _NAME.fullmatch(architecture):
        yield f"general.architecture is {architecture!r}, not the name of one"
        return
    for key in _SPLIT:
        if (key in values and (type(values[key]) is not int or int(values[key]) < 0)) or key in header.arrays:
            yield f"{key} is {values.get(key, 'an array')!r}, not a number"
            return
    for name, used in _COUNTS.items():
        key = f"{architecture}.{name}"
        least = int(any(used in tensor for tensor in tensors))
        if key in values and not _is_count(values[key], least):
            yield f"{key} is {values[key]!r}, not a natural number from {least}"
            return
    for key, value in values.items():
        if key.endswith(_REAL) and not (isinstance(value, float) and 0 <= value < math.inf):
            yield f"{key} is {value!r}, not a number from 0"
            return
    yield from _layers(f"{architecture}.block_count", values, tensors)
    yield from _widths(architecture, values, tensors)
    yield from _experts(architecture, values, tensors)


def _layers(key: str, values: Mapping[str, Value], tensors: Mapping[str, HeaderTensor]) -> Iterator[str]:
    found = {int(match[1]) for match in map(_BLOCK.match, tensors) if match}
    if key not in values:
        yield f"it has no {key}"
    elif found and max(found) >= int(values[key]):
        yield f"{key} is {values[key]}, and it has tensors of block {max(found)}"
    elif int(values[key]) > len(tensors):
        yield f"{key} is {values[key]}, and it has {len(tensors)} tensors"


def _widths(architecture: str, values: Mapping[str, Value], tensors: Mapping[str, HeaderTensor]) -> Iterator[str]:
    width, embedding = values.get(f"{architecture}.embedding_length"), tensors.get("token_embd.weight")
    if width is not None and embedding is not None and embedding.shape[-1] != width:
        yield f"{architecture}.embedding_length is {width}, and token_embd.weight has {embedding.shape[-1]} in a row"


def _experts(architecture: str, values: Mapping[str, Value], tensors: Mapping[str, HeaderTensor]) -> Iterator[str]:
    key, used = f"{architecture}.expert_count", f"{architecture}.expert_used_count"
    for each in (key, used):
        if each in values and (type(values[each]) is not int or not 0 <= int(values[each]) < _LARGEST):
            yield f"{each} is {values[each]!r}, not a natural number"
            return
    count = int(values.get(key, 0))
    stacked = [tensor for name, tensor in tensors.items() if "_exps." in name and len(tensor.shape) == 3]
    for tensor in stacked:
        if tensor.shape[0] != count:
            yield f"{key} is {count}, and {tensor.name} has {tensor.shape[0]} experts"
            return
    if stacked and not 1 <= int(values.get(used, 0)) <= count:
        yield f"{used} is {values.get(used, 'absent')}, and there are {count} experts"
    elif count and not stacked and count > len(tensors):
        yield f"{key} is {count}, and no tensor holds experts"


def _is_count(value: Value, least: int) -> bool:
    return type(value) is int and least <= value < _LARGEST
