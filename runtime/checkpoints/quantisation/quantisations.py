"""Which tensors of a checkpoint make a quantised weight, by what its configuration says and by what is there.

Modules that the checkpoint has as they are stay so. What is quantised in a way that was not found out is an
UnreadableTensor, which no model may use.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ....tiering.errors import CheckpointError
from ..files.failures import reason
from ..files.safetensors_file import SourceTensor
from . import bitsandbytes_layouts, compressed_layouts
from .account import is_part, parts_by_weight
from .expected import expect, finite
from .fp8_layouts import FLOAT8, fp8_weight, is_fp8, scales_of, weight_block
from .integer_layouts import awq, gptq
from .quantised_tensor import Lines, QuantisedTensor, ReadTensor, UnreadableTensor, as_lines, fits, quantised_tensor

Tensors = Mapping[str, SourceTensor]
Config = Mapping[str, Any]
Made = QuantisedTensor | UnreadableTensor


class Candidate(NamedTuple):
    """Tensors that make the weight ``target``: the numbers first, ``own`` by the ends of their names."""

    target: str
    own: Tensors
    make: Callable[[], Made]


def gather_quantised(tensors: Tensors, config: Config | None, read: ReadTensor) -> dict[str, SourceTensor]:
    """``tensors`` of a checkpoint with one QuantisedTensor for all those that are a quantised weight, or an
    UnreadableTensor. ``config`` is its ``quantization_config``, None without one; ``read`` reads small tensors.

    Raises CheckpointError for a way of quantising that is not read here, and for a weight that is not as it says.
    """
    method, candidates = (None, _unexplained(tensors)) if config is None else _checked(tensors, config, read)
    candidates = _guarded(candidates, method)
    found: dict[str, SourceTensor] = {}
    used: set[str] = set()
    for target, own, make in candidates:
        main, *_ = own.values()
        names = {tensor.name for tensor in own.values()}
        stem = target.removesuffix(".weight")
        try:
            if target in tensors.keys() - names:
                raise ValueError(f"{target} is there too")
            made = make()
        except CheckpointError:
            raise
        except Exception as error:  # also what of a shape or configuration nobody thought of
            what = f"it lacks {stem}{error.args[0]}" if isinstance(error, KeyError) else reason(error)
            raise CheckpointError(f"{main.file}: {main.name} cannot be read as {method}: {what}") from error
        found[target] = replace(made, name=target)
        if isinstance(made, QuantisedTensor):
            used |= names
    return {name: tensor for name, tensor in tensors.items() if name not in used | found.keys()} | found


def _checked(tensors: Tensors, config: Config, read: ReadTensor) -> tuple[str, Iterator[Candidate]]:
    """As ``_candidates``. Raises CheckpointError also for a configuration of another kind than any."""
    try:
        return _candidates(tensors, config, read)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"config.json has a quantization_config that cannot be used ({reason(error)}); fetch it again"
        ) from error


def _guarded(candidates: Iterator[Candidate], method: str | None) -> Iterator[Candidate]:
    """``candidates``. Raises CheckpointError for a configuration that they cannot be found by."""
    try:
        yield from candidates
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"config.json has a quantization_config of {method} that cannot be used ({reason(error)}); fetch it again"
        ) from error


def _candidates(tensors: Tensors, config: Config, read: ReadTensor) -> tuple[str, Iterator[Candidate]]:
    method = _method(config)
    if method == "compressed-tensors" and (unread := compressed_layouts.unread_part(config)):
        raise CheckpointError(
            f"the weights are quantised as {method!r} {unread}, which penstock does not read; "
            f"take a checkpoint in another format, or one that is not quantised"
        )
    if method in _METHODS:
        return method, _METHODS[method](tensors, config, read)
    known = method == "bitsandbytes" or method in AUTO_QUANTIZATION_CONFIG_MAPPING
    if not known and not any(map(_looks_quantised, tensors.values())):
        return method, iter(())  # transformers takes no notice of it either
    raise CheckpointError(
        f"the weights are quantised as {method or 'unknown'!r}, which penstock does not read; "
        f"it reads {', '.join(dict.fromkeys(name.partition(' ')[0] for name in _METHODS))}, and weights that are not "
        "quantised: take a checkpoint in one of these"
    )


def _method(config: Config) -> str:
    """The way of quantising, as transformers finds it out."""
    if config.get("load_in_4bit"):
        return "bitsandbytes in 4 bits"
    if config.get("load_in_8bit"):
        return "bitsandbytes in 8 bits"
    return str(config.get("quant_method") or "").lower()


def _looks_quantised(tensor: SourceTensor) -> bool:
    narrow = tensor.dtype.itemsize < 2 if tensor.dtype.is_floating_point else tensor.dtype != torch.bool
    return (narrow and len(tensor.shape) > 1) or is_part(tensor.name)


def _own(tensors: Tensors, stem: str, ends: tuple[str, ...]) -> dict[str, SourceTensor]:
    """Those of ``tensors`` that are ``stem`` with one of ``ends``, by the end; the first of these must be there."""
    return {end: tensors[stem + end] for end in ends if stem + end in tensors}


def _unexplained(tensors: Tensors) -> Iterator[Candidate]:
    """Without a configuration, float8 numbers are what they are, unless something that belongs to them says more."""
    parts = parts_by_weight(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype in FLOAT8 and not is_part(name) and name in parts:
            reason = "is float8, and config.json has no quantization_config, which would say what"
            yield _unreadable(tensor, f"{reason} {parts[name][0]} means")


def _unreadable(tensor: SourceTensor, reason: str) -> Candidate:
    place = tensor.name, tensor.file, tensor.dtype, tensor.shape, tensor.offset, tensor.length
    return Candidate(tensor.name, {"": tensor}, lambda: UnreadableTensor(*place, f"{tensor.name} {reason}"))


def _float8(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
    block = weight_block(config)
    for name, tensor in tensors.items():
        if is_fp8(tensor, tensors) and len(tensor.shape) > 2 and _method(config) == "fbgemm_fp8":
            yield _unreadable(tensor, "is a stack of experts of FBGEMM, whose scales penstock does not read")
        elif is_fp8(tensor, tensors):
            yield _float8_candidate(name, tensors, block)


def _float8_candidate(name: str, tensors: Tensors, block: list[int] | None) -> Candidate:
    numbers, scales = tensors[name], scales_of(name, tensors)
    if len(scales) != 1:
        names = [scale.name for scale in scales] or parts_by_weight(tensors).get(name, [])
        there = f"beside it are {', '.join(names)}" if names else "nothing beside it is one"
        return _unreadable(numbers, f"is {numbers.dtype} and has no scale that penstock knows; {there}")
    return Candidate(name, {"": numbers, "scale": scales[0]}, lambda: fp8_weight(numbers, scales[0], block))


def _mxfp4(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
    for name in tensors:
        if (stem := name.removesuffix("_blocks")) != name:
            own = _own(tensors, stem, ("_blocks", "_scales"))
            yield Candidate(stem, own, _bound(_mxfp4_weight, own))


def _mxfp4_weight(own: Tensors) -> QuantisedTensor:
    blocks, scales = own["_blocks"], own["_scales"]
    if len(blocks.shape) != 4 or not blocks.length:
        raise ValueError(f"{blocks.name} is {list(blocks.shape)}, not a stack of matrices in blocks of 16 bytes")
    *experts, n, groups, size = blocks.shape
    expect(blocks, (torch.uint8,), blocks.shape)
    expect(scales, (torch.uint8,), blocks.shape[:-1])
    if size != 16 or scales.shape != (*experts, n, groups) or not experts or not fits("mxfp4", n, 32 * groups):
        raise ValueError(f"its shapes {list(blocks.shape)} and {list(scales.shape)} do not belong together")
    # The experts of gpt-oss have their inputs as rows.
    shape = (*experts, 32 * groups, n)
    return quantised_tensor(shape, (blocks, scales), "mxfp4", _mxfp4_lines, transposed=True)


def _mxfp4_lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
    numbers, scales = tensors
    return Lines((as_lines(read(numbers)), as_lines(finite(read(scales), scales))))


def _integers(
    ends: tuple[str, ...], make: Callable[[Tensors, Config, ReadTensor], QuantisedTensor]
) -> Callable[[Tensors, Config, ReadTensor], Iterator[Candidate]]:
    def find(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
        for name in tensors:
            if (stem := name.removesuffix(ends[0])) != name:
                own = _own(tensors, stem, ends)
                yield Candidate(f"{stem}.weight", own, _bound(make, own, config, read))

    return find


_COMPRESSED = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx")


def _compressed(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
    bits, zeros = compressed_layouts.bits_of(config), compressed_layouts.has_zeros(config)
    group = compressed_layouts.group_of(config)
    for name, tensor in tensors.items():
        if (stem := name.removesuffix(".weight_packed")) != name and tensor.dtype == torch.int32:
            own = _own(tensors, stem, _COMPRESSED)
            yield Candidate(f"{stem}.weight", own, _bound(_packed, own, bits, zeros, read, group))
        elif stem != name:
            own = _own(tensors, stem, (".weight_packed", ".weight_scale", ".weight_global_scale"))
            yield Candidate(f"{stem}.weight", own, _bound(_nvfp4, own, ".weight_global_scale", True))
        elif (stem := name.removesuffix(".weight")) != name and tensor.dtype == torch.int8:
            own = _own(tensors, stem, (".weight", ".weight_scale", ".weight_zero_point"))
            yield Candidate(name, own, _bound(compressed_layouts.int8_weight, own))
        elif is_fp8(tensor, tensors):
            yield _float8_candidate(name, tensors, None)
        elif stem != name and f"{stem}.weight_scale" in tensors:
            yield _unreadable(tensor, f"is not quantised, though {stem}.weight_scale says how; compress the checkpoint")


def _packed(own: Tensors, bits: int | None, zeros: bool, read: ReadTensor, group: int | None) -> QuantisedTensor:
    if zeros and ".weight_zero_point" not in own:
        raise KeyError(".weight_zero_point")
    return compressed_layouts.packed_integers(own, bits, read, group)


def _modelopt(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
    for name, tensor in tensors.items():
        if (stem := name.removesuffix(".weight")) != name and f"{stem}.pre_quant_scale" in tensors:
            yield _unreadable(tensor, "needs inputs multiplied by its pre_quant_scale, which penstock does not do")
        elif stem != name and tensor.dtype == torch.uint8:
            own = _own(tensors, stem, (".weight", ".weight_scale", ".weight_scale_2"))
            yield Candidate(name, own, _bound(_nvfp4, own, ".weight_scale_2", False))
        elif is_fp8(tensor, tensors):
            yield _float8_candidate(name, tensors, None)


def _nvfp4(own: Tensors, whole: str, divided: bool) -> QuantisedTensor:
    main, *_ = own.values()
    return compressed_layouts.nvfp4_weight(main, own[".weight_scale"], own[whole], divided=divided)


def _bits_and_bytes(tensors: Tensors, config: Config, read: ReadTensor) -> Iterator[Candidate]:
    for name in tensors:
        if name.endswith(".weight") and f"{name}.absmax" in tensors:
            own = _own(tensors, name, bitsandbytes_layouts.FOUR_BITS)
            yield Candidate(name, own, _bound(bitsandbytes_layouts.four_bits, own, read))
        elif (stem := name.removesuffix(".weight")) != name and f"{stem}.SCB" in tensors:
            own = _own(tensors, stem, (".weight", ".SCB", ".weight_format"))
            yield Candidate(name, own, _bound(bitsandbytes_layouts.int8_rows, own, read))


def _bound(function: Callable[..., QuantisedTensor], *arguments: Any) -> Callable[[], QuantisedTensor]:
    return lambda: function(*arguments)


_METHODS: Mapping[str, Callable[[Tensors, Config, ReadTensor], Iterator[Candidate]]] = {
    "mxfp4": _mxfp4,
    "fp8": _float8,
    "mxfp8": _float8,
    "fbgemm_fp8": _float8,
    "gptq": _integers((".qweight", ".qzeros", ".scales", ".g_idx"), gptq),
    "awq": _integers((".qweight", ".qzeros", ".scales"), awq),
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
    "bitsandbytes in 4 bits": _bits_and_bytes,
    "bitsandbytes in 8 bits": _bits_and_bytes,
}
"""By quant_method: what finds the weights that are quantised so."""
