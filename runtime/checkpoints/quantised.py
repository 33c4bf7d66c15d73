"""Weights that a checkpoint has quantised: which tensors make one, and its numbers as a plane of a weight format.

A quantised weight is several tensors of the checkpoint: numbers, scales and perhaps zeros. Here they become one
QuantisedTensor under the name that the weight would have if it were not quantised, so that transformers' renaming and
stacking of weights (``convert.py``) applies to it; the number of a row says where it ends up. No number is quantised
anew: a plane holds the checkpoint's own, row by row. Modules that the checkpoint has as they are stay so.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ...kernels.formats.base import UnsuitableShape
from ...kernels.formats.blocks import Blocks
from ...kernels.formats.fp8 import BLOCK
from ...kernels.formats.registry import FORMATS
from ...kernels.formats.uint4 import pack_values
from ...tiering.errors import CheckpointError
from .safetensors_file import SourceTensor

ReadTensor = Callable[[SourceTensor], torch.Tensor]
"""Reads a tensor of the checkpoint as stored."""

_SLAB = 256  # rows reordered at a time


class Lines(NamedTuple):
    """The numbers of a matrix [n, k]: each of ``parts`` has a line for each row.

    ``order``, int32 [k], has the column of each stored number. None if the columns ascend.
    """

    parts: tuple[torch.Tensor, ...]
    order: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class QuantisedTensor(SourceTensor):
    """A quantised weight: ``shape`` is that of the weight, ``tensors`` are the checkpoint's tensors for it.

    ``format`` is the weight format of its numbers, or of its transpose's if ``transposed``. ``read_lines`` makes lines
    of the tensors. ``file``, ``offset`` and ``length``, in bytes, say where most of it is.
    """

    format: str
    tensors: tuple[SourceTensor, ...]
    read_lines: Callable[[ReadTensor, tuple[SourceTensor, ...]], Lines]
    transposed: bool = False

    def part(self, index: int) -> "QuantisedTensor":
        """Return the slice ``index`` of the first dimension: one expert's matrix."""
        tensors = tuple(tensor.part(index) for tensor in self.tensors)
        main = tensors[0]
        return replace(self, shape=self.shape[1:], tensors=tensors, offset=main.offset, length=main.length)

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape [n, k] of the stored matrix, of one matrix if several are stacked."""
        n, k = self.shape[-2:]
        return (k, n) if self.transposed else (n, k)

    @property
    def order(self) -> SourceTensor | None:
        """The tensor with the order of the stored columns. None if they ascend."""
        return self.tensors[-1] if _blocks(self.format).ordered else None

    def lines(self, read: ReadTensor) -> Lines:
        """Return its numbers, row by row, from tensors read by ``read``. Raises CheckpointError."""
        return self.read_lines(read, self.tensors)


def gather_quantised(tensors: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> dict[str, SourceTensor]:
    """Return ``tensors`` of a checkpoint with one QuantisedTensor for all tensors of a quantised weight.

    ``config`` is its ``quantization_config``. Raises CheckpointError for an unsupported way of quantising.
    """
    method = str(config.get("quant_method", "")).lower()
    if method not in _METHODS:
        raise CheckpointError(
            f"the weights are quantised as {method or 'unknown'!r}, which penstock does not read; "
            f"it reads {', '.join(_METHODS)}, and weights that are not quantised"
        )
    suffixes, make = _METHODS[method]
    found: dict[str, SourceTensor] = {}
    used: set[str] = set()
    for name in tensors:
        stem = name.removesuffix(suffixes[0])
        if stem == name or (suffixes[0] == ".weight" and stem + suffixes[1] not in tensors):
            continue
        own = {suffix: tensors[stem + suffix] for suffix in suffixes if stem + suffix in tensors}
        try:
            made = make(own, config)
            _blocks(made.format).lengths(*made.matrix)
        except (KeyError, UnsuitableShape, ValueError) as error:
            what = f"it lacks {stem}{error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{name} cannot be read as {method}: {what}") from error
        target = stem + (".weight" if suffixes[0].startswith(".") else "")
        found[target] = replace(made, name=target)
        used |= {tensor.name for tensor in own.values()}
    return {name: tensor for name, tensor in tensors.items() if name not in used} | found


def stacked_format(sources: Sequence[QuantisedTensor], mapping: torch.Tensor | None) -> str | None:
    """Return the format of a matrix with rows of ``sources``. None if they do not fit one format.

    ``mapping``, int64 [n, 2], has the source and row of each. None stands for all rows of the only source.
    """
    formats = {source.format for source in sources}
    if len(formats) > 1:
        return None
    (name,) = formats
    if name == _FP8 and mapping is not None:
        # A line of scales belongs to rows that lie together in the source.
        together = mapping.clone()
        together[:, 1] //= BLOCK
        apart = (together[1:] != together[:-1]).any(1).nonzero().flatten() + 1
        first = mapping[torch.cat((torch.zeros(1, dtype=torch.long), apart)), 1]
        if bool((apart % BLOCK).any()) or bool((first % BLOCK).any()):
            return _FP8_ROWS
    return name


def plane(format_name: str, lines: Sequence[Lines], mapping: torch.Tensor | None, k: int) -> torch.Tensor:
    """Return the plane, uint8 [length], of the matrix with ``lines`` of its sources as rows, as ``mapping`` says. All
    have their columns in the same order."""
    order = lines[0].order
    parts = [
        torch.cat(each) if len(each) > 1 else each[0] for each in zip(*(line.parts for line in lines), strict=True)
    ]
    if mapping is not None:
        starts = torch.tensor([0, *(len(line.parts[0]) for line in lines[:-1])]).cumsum(0)
        rows = starts[mapping[:, 0]] + mapping[:, 1]
        if not torch.equal(rows, torch.arange(len(parts[0]))):
            parts = [part[rows] for part in parts]
    n = len(parts[0])
    format_ = _blocks(format_name)
    tables = format_.parts(n, k)
    stored = [part[:: table.rows] for part, table in zip(parts, tables, strict=False)]
    return format_.join([*stored, *([] if order is None else [order])], n, k)


def _blocks(name: str) -> Blocks:
    format_ = FORMATS[name]
    assert isinstance(format_, Blocks)
    return format_


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a matrix as uint8 [rows, bytes per row]."""
    return tensor.contiguous().view(-1).view(torch.uint8).view(len(tensor), -1)


_FP8, _FP8_ROWS = f"fp8-{BLOCK}x{BLOCK}", f"fp8-1x{BLOCK}"


def _fp8(own: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> QuantisedTensor:
    numbers, scales = own[".weight"], own[".weight_scale_inv"]
    block = config.get("weight_block_size")
    n, k = numbers.shape[-2:]
    if numbers.dtype != torch.float8_e4m3fn or not scales.dtype.is_floating_point or scales.dtype.itemsize < 2:
        raise ValueError(f"it has {numbers.dtype} with scales of {scales.dtype}, not float8_e4m3fn and float32")
    if scales.shape and scales.shape[-2:] != (-(-n // BLOCK), -(-k // BLOCK)):
        raise ValueError(f"{list(scales.shape)} scales in blocks of {block} do not fit {BLOCK} x {BLOCK}")
    return _tensor(numbers, _FP8, numbers.shape, (numbers, scales), _fp8_lines)


def _fp8_lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
    numbers, scales = map(read, tensors)
    n, k = numbers.shape
    each = scales.float().expand(-(-n // BLOCK), -(-k // BLOCK))
    return Lines((_as_bytes(numbers), _as_bytes(each.repeat_interleave(BLOCK, 0)[:n])))


def _mxfp4(own: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> QuantisedTensor:
    blocks, scales = own["_blocks"], own["_scales"]
    *experts, n, groups, size = blocks.shape
    if size != 16 or scales.shape != (*experts, n, groups) or not experts:
        raise ValueError(f"its shapes {list(blocks.shape)} and {list(scales.shape)} do not belong together")
    # The experts of gpt-oss have their inputs as rows.
    shape = (*experts, 32 * groups, n)
    return _tensor(blocks, "mxfp4", shape, (blocks, scales), _mxfp4_lines, transposed=True)


def _mxfp4_lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
    return Lines(tuple(_as_bytes(read(tensor)) for tensor in tensors))


def _gptq(own: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> QuantisedTensor:
    bits, group = int(config["bits"]), int(config["group_size"])
    _check_bits(bits, own)
    numbers = own[".qweight"]
    k, n = 8 * numbers.shape[0], numbers.shape[1]
    ordered = bool(config.get("desc_act")) and ".g_idx" in own
    name = _uint4_name(group, k, ordered=ordered)
    # Packing in its first version stored zeros less one.
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    tensors = (numbers, own[".scales"], own[".qzeros"], *([own[".g_idx"]] if ordered else []))

    def lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
        return _gptq_lines(read, tensors, less)

    return _tensor(numbers, name, (n, k), tensors, lines)


def _gptq_lines(read: ReadTensor, tensors: tuple[SourceTensor, ...], less: int) -> Lines:
    """Eight numbers along k in an int32 of qweight [k / 8, n]; eight along n in one of qzeros [groups, n / 8]."""
    numbers, scales, zeros, *groups = map(read, tensors)
    order = None
    if groups:
        order = torch.argsort(groups[0], stable=True)
        counts = torch.bincount(groups[0], minlength=len(scales))
        if not bool((counts == len(order) // len(scales)).all()):
            raise CheckpointError(f"{tensors[-1].name} has groups of different sizes, which penstock does not read")

    def rows(start: int) -> torch.Tensor:
        columns = numbers[:, start : start + _SLAB].t().contiguous()
        values = _nibbles(columns)
        return values if order is None else values[:, order]

    lifted = ((_nibbles(zeros) + less) & 15).t()  # a zero of 0 was stored as 15
    return Lines(
        (_packed(rows, numbers.shape[1]), _as_bytes(scales.t()), _as_bytes(lifted)),
        None if order is None else order.int(),
    )


def _awq(own: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> QuantisedTensor:
    bits, group = (
        int(config.get("bits", config.get("w_bit", 4))),
        int(config.get("group_size", config.get("q_group_size", 128))),
    )
    _check_bits(bits, own)
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise ValueError(f"version {version!r} of AWQ is not read, only 'gemm'")
    numbers = own[".qweight"]
    k, n = numbers.shape[0], 8 * numbers.shape[1]
    name = _uint4_name(group, k, ordered=False)
    return _tensor(numbers, name, (n, k), (numbers, own[".scales"], own[".qzeros"]), _awq_lines)


_AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
"""Which four bits of an int32 hold each of eight numbers."""


def _awq_lines(read: ReadTensor, tensors: tuple[SourceTensor, ...]) -> Lines:
    """Eight numbers along n in an int32 of qweight [k, n / 8] and of qzeros [groups, n / 8], in AWQ's order."""
    numbers, scales, zeros = map(read, tensors)

    def apart(packed_eight: torch.Tensor) -> torch.Tensor:
        eights = _nibbles(packed_eight).view(len(packed_eight), -1, 8)
        return eights[:, :, _AWQ_ORDER].reshape(len(packed_eight), -1).t()

    def rows(start: int) -> torch.Tensor:
        return apart(numbers[:, start // 8 : (start + _SLAB) // 8].contiguous()).contiguous()

    return Lines((_packed(rows, 8 * numbers.shape[1]), _as_bytes(scales.t()), _as_bytes(apart(zeros))))


def _packed(rows: Callable[[int], torch.Tensor], n: int) -> torch.Tensor:
    """Pack the values of a matrix of n rows as uint4 does. ``rows(start)`` returns _SLAB rows at most."""
    first = pack_values(rows(0))
    made = torch.empty(n, first.shape[1], dtype=first.dtype)
    made[:_SLAB] = first
    for start in range(_SLAB, n, _SLAB):
        made[start : start + _SLAB] = pack_values(rows(start))
    return made


def _nibbles(eights: torch.Tensor) -> torch.Tensor:
    """Unpack the eight numbers of each int32, the lowest bits first: uint8 [rows, 8 * columns]."""
    pairs = eights.contiguous().view(torch.uint8).view(len(eights), -1)
    return torch.stack((pairs & 15, pairs >> 4), 2).view(len(eights), -1)


def _check_bits(bits: int, own: Mapping[str, SourceTensor]) -> None:
    if bits != 4:
        raise ValueError(f"it has {bits} bits, and penstock reads 4")
    scales = own[".scales"]
    if own[".qweight"].dtype != torch.int32 or scales.dtype != torch.float16:
        raise ValueError(f"its scales are {scales.dtype}, and penstock reads float16")


def _uint4_name(group: int, k: int, *, ordered: bool) -> str:
    """Find the uint4 format for groups of ``group`` numbers (-1: a whole row) in rows of ``k``."""
    sizes = [str(group), *(["row"] if group in (-1, k) else [])]
    names = [f"uint4-{size}{'-ordered' if ordered else ''}" for size in sizes]
    found = next((name for name in names if name in FORMATS), None)
    if found is None:
        raise ValueError(f"groups of {group} numbers are not read")
    return found


def _tensor(
    main: SourceTensor,
    format_name: str,
    shape: Iterable[int],
    tensors: tuple[SourceTensor, ...],
    lines: Callable[[ReadTensor, tuple[SourceTensor, ...]], Lines],
    *,
    transposed: bool = False,
) -> QuantisedTensor:
    return QuantisedTensor(
        main.name,
        main.file,
        torch.uint8,
        tuple(shape),
        main.offset,
        main.length,
        format_name,
        tensors,
        lines,
        transposed,
    )


_METHODS: Mapping[
    str, tuple[tuple[str, ...], Callable[[Mapping[str, SourceTensor], Mapping[str, Any]], QuantisedTensor]]
] = {
    "mxfp4": (("_blocks", "_scales"), _mxfp4),
    "fp8": ((".weight", ".weight_scale_inv"), _fp8),
    "gptq": ((".qweight", ".qzeros", ".scales", ".g_idx"), _gptq),
    "awq": ((".qweight", ".qzeros", ".scales"), _awq),
}
"""By quant_method: the ends of tensor names, that of the numbers first, and the function that joins the tensors."""
