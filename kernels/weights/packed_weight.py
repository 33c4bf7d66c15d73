"""A matrix in a weight format that behaves like a weight. Products use it as stored, all other operations decode it.

A product with few rows uses the format's own kernel. Otherwise the matrix is decoded, tile by tile, into a scratch
buffer that stays in the processor's caches, and torch multiplies by the tile. A matrix in an exact format is decoded
whole, because tiles could give other bits, and lies in memory as in transformers: in the same order, at an address with
the same alignment. For a large matrix a trial on the matrix itself, decoded once per number of rows, shows whether the
product has torch's bits.

With planes on a CUDA device, kernels/cuda does all of this there, with larger tiles.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from ..cuda.base import DeviceFormat
from ..cuda.registry import find_device_format
from ..formats.base import SLAB, Format
from ..formats.planes import locate
from ..products.autocast import is_cast
from ..products.few_rows import find_product, is_untried, orders_agree, rounds_once
from ..products.row_order import ROW_ORDER
from .metadata_ops import LOOKS
from .transposed import copy_transposed

TILE = 4 << 20
"""Bytes of a matrix that are decoded at a time in memory."""
DEVICE_TILE = 64 << 20
"""Bytes of a matrix that are decoded at a time on a device. A launch costs more there, and no cache has to hold a tile.
"""
_ALIGNMENT = 64

Many = Callable[..., torch.Tensor]
"""``many(weights, inputs)`` computes [len(weights), rows, n], one of an exact format also ``many(.., .., biases)``.

Inputs [rows, k] and biases [n] are given by their addresses, as in Product and BiasedProduct.
"""


class PackedWeight(torch.Tensor):
    """``planes`` [bytes] of ``format``, the first ones or all, as a tensor of ``shape`` and ``dtype``.

    ``transposed``: the encoded matrix is the transpose, [shape[1], shape[0]]. ``address`` is the address of its numbers
    in plain form, modulo 64: an exact format decodes to a place with the same remainder. The tensor is a view on
    ``planes``, without own memory. Raises ValueError for planes that are not of such a matrix. ``bare``: only a form,
    without numbers; its one plane tells the device.
    """

    format: Format
    planes: tuple[torch.Tensor, ...]
    transposed: bool
    stand_in: torch.Tensor | None = None
    """A tensor that stands for this one in all functions that are not products of it, if there is one."""

    @staticmethod
    def __new__(
        cls,
        planes: Sequence[torch.Tensor],
        format: Format,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        address: int = 0,
        requires_grad: bool = False,
        bare: bool = False,
    ) -> "PackedWeight":
        made: PackedWeight = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=planes[0].device, requires_grad=requires_grad
        )
        torch._C._set_throw_on_mutable_data_ptr(made)  # it has no memory for C code that goes past all functions
        made.format, made.planes, made.transposed = format, tuple(planes), transposed
        made._place, made._numbers, made._grads = address, dtype, requires_grad
        made.encoded_shape = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
        made.addresses = [] if bare else locate(format, planes, *made.encoded_shape)
        made.on_device = _on_device(format) if planes[0].is_cuda else None
        made._is_param = True  # modules check that a weight is a parameter
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    encoded_shape: tuple[int, int]
    """[n, k] of the matrix as encoded."""
    addresses: list[int]
    """The matrix as products take it, see ``formats.planes.locate``."""
    on_device: DeviceFormat | None
    """The format on a device if the planes are on one. None in host memory."""
    _place: int
    _numbers: torch.dtype
    _grads: bool
    # Copies of dtype and requires_grad, for which torch needs a call.

    def _shown(self) -> torch.Tensor:
        return self if self.stand_in is None else self.stand_in

    def as_parameter(self, requires_grad: bool) -> "PackedWeight":
        """Return this weight as a parameter with the given ``requires_grad``."""
        place, transposed = self._place, self.transposed
        return PackedWeight(
            self.planes,
            self.format,
            self.shape,
            self.dtype,
            transposed=transposed,
            address=place,
            requires_grad=requires_grad,
            bare=not self.addresses,
        )

    def decoded(self) -> torch.Tensor:
        """Return the whole matrix as a new tensor with this shape and dtype."""
        return self._decode(self.planes[0].new_empty(self._room))

    def at_hand(self) -> torch.Tensor:
        """Return the whole matrix in scratch memory, valid until this thread decodes the next one."""
        return self._decode(_buffer(self, self._room, _scratch))

    @property
    def _room(self) -> int:
        return self.numel() * self.dtype.itemsize + 2 * _ALIGNMENT

    def _decode(self, room: torch.Tensor) -> torch.Tensor:
        start = -room.data_ptr() % _ALIGNMENT + self._place
        out = room[start : start + self.numel() * self.dtype.itemsize].view(self.dtype).view(self.shape)
        n, k = self.encoded_shape
        if self.transposed:
            for part, tile in _tiles(self):
                copy_transposed(tile, out[:, part])
        else:
            (self.on_device or self.format).decode(self.planes, n, k, slice(0, n), out)
        # The bits also depend on whether a weight requires gradients.
        return nn.Parameter(out, self.requires_grad)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OWN:
            return _OWN[func](*args, **kwargs)
        if func not in LOOKS and any(
            getattr(leaf, "stand_in", None) is not None for leaf in tree_leaves((args, kwargs))
        ):
            args, kwargs = tree_map_only(cls, cls._shown, (tuple(args), kwargs))
            return func(*args, **kwargs)
        if func.__name__.endswith("_") and not func.__name__.endswith("__"):
            raise TypeError(f"an encoded weight cannot be changed in place ({func.__name__})")
        with torch._C.DisableTorchFunctionSubclass():
            if func not in LOOKS:
                args, kwargs = tree_map_only(cls, cls.decoded, (tuple(args), kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        # Some functions of torch cannot be replaced by a class. They come here.
        kwargs = kwargs or {}
        if not _has_stand_in((args, kwargs)):
            raise NotImplementedError(f"{func} was not expected to see an encoded weight")
        args, kwargs = tree_map_only(cls, cls._shown, (tuple(args), kwargs))
        return func(*args, **kwargs)


def _has_stand_in(tree: Any) -> bool:
    return any(getattr(leaf, "stand_in", None) is not None for leaf in tree_leaves(tree))


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``functional.linear`` with a packed weight."""
    if isinstance(weight, PackedWeight):
        out = None if weight.transposed or is_cast(input) else _times(input, weight, bias)
        if out is not None:
            return out
        weight = weight.at_hand()
    return _plain_linear(input, weight, bias)


def _matmul(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``input @ weight``."""
    if isinstance(weight, PackedWeight):
        out = _times(input, weight) if weight.transposed and not is_cast(input) else None
        return input @ weight.at_hand() if out is None else out
    return _decoded(input) @ weight


def addmm(bias: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, **scales: Any) -> torch.Tensor:
    """Compute ``torch.addmm`` with a packed weight."""
    if isinstance(weight, PackedWeight) and weight.transposed and not scales and not is_cast(input):
        out = _times(input, weight, bias)
        if out is not None:
            return out
    bias, input, weight = map(_decoded, (bias, input, weight))
    if not ROW_ORDER.alone:
        return torch.addmm(bias, input, weight, **scales)
    return torch.cat([torch.addmm(bias, row, weight, **scales) for row in torch.split(input, 1)])


def _decoded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.decoded() if isinstance(tensor, PackedWeight) else tensor


def _times(input: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Compute ``input`` [.., k] times the transpose of the encoded matrix [n, k], without decoding all of it at a time.

    None if bits would change.
    """
    if bias is not None and weight.format.exact:
        return _times_exactly(input, weight, bias)
    out = _times_unbiased(input, weight)
    return out if out is None or bias is None else out + bias


def _times_exactly(input: torch.Tensor, weight: PackedWeight, bias: torch.Tensor) -> torch.Tensor | None:
    """Compute the product where the bias is added before the sum is rounded, as torch does it."""
    n, k = weight.encoded_shape
    if weight.on_device is not None or not rounds_once(input, bias, n):
        return None
    many = _found(weight, input.numel() // k, biased=True)
    if many is None:
        return None
    return many([weight], [input.data_ptr()], [bias.data_ptr()]).view(*input.shape[:-1], n)


def _times_unbiased(input: torch.Tensor, weight: PackedWeight) -> torch.Tensor | None:
    n, k = weight.encoded_shape
    if weight.format.exact and not (weight._grads or input.is_contiguous()):
        return None
    if weight.on_device is not None:
        found = _device_product(input, weight, weight.on_device)
        if found is not None:
            return found
    elif input.dtype == torch.bfloat16 and (many := _found(weight, input.numel() // k)) is not None:
        state = input.contiguous()
        return many([weight], [state.data_ptr()]).view(*input.shape[:-1], n)
    if weight.format.exact:
        return None
    out = input.new_empty((*input.shape[:-1], n))
    for part, tile in _tiles(weight):
        out[..., part] = _plain_linear(input, tile)
    return out


def _plain_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``functional.linear``, row by row where each has the bits that it has alone."""
    if not ROW_ORDER.alone:
        return functional.linear(input, weight, bias)
    return torch.cat([functional.linear(row, weight, bias) for row in torch.split(input, 1)])


def _device_product(input: torch.Tensor, weight: PackedWeight, on_device: DeviceFormat) -> torch.Tensor | None:
    n, k = weight.encoded_shape
    if input.dtype != torch.bfloat16 or weight._numbers != torch.bfloat16:
        return None
    out = on_device.product(weight.planes, n, k, input.reshape(-1, k))
    return None if out is None else out.view(*input.shape[:-1], n)


def _on_device(format: Format) -> DeviceFormat:
    found = find_device_format(format.name)
    if found is None:
        raise ValueError(f"there are no {format.name} weights on a CUDA device")
    return found


def find_products(weight: PackedWeight, rows: int, *, biased: bool = False) -> Many | None:
    """Find products of ``rows`` rows with several weights like ``weight`` in one call. None if the format has none.

    ``biased``: with biases, those of an exact format.
    """
    if weight._numbers != torch.bfloat16 or weight.on_device is not None:
        return None
    format: Any = weight.format
    if weight.transposed and format.exact and not orders_agree(rows, *weight.encoded_shape, biased=biased):
        return None
    return _many(format, rows, *weight.encoded_shape, torch.get_num_threads(), biased)


def _many(format: Any, rows: int, n: int, k: int, threads: int, biased: bool) -> Many | None:
    """Return the format's product, cached once there is one, because every product needs it."""
    key = format, rows, n, k, threads, ROW_ORDER.alone, biased
    if key not in _kept:
        product = format.find_product(rows, n, k, biased=True) if biased else format.find_product(rows, n, k)
        if product is None:
            return None
        _kept[key] = lambda weights, *others: product([weight.addresses for weight in weights], *others)
    return _kept[key]


_kept: dict[tuple[Any, int, int, int, int, bool, bool], Many] = {}


def _found(weight: PackedWeight, rows: int, *, biased: bool = False) -> Many | None:
    """Find the product as ``find_products``.

    A large weight serves as its own trial, if nothing smaller can show torch's bits.
    """
    many = find_products(weight, rows, biased=biased)
    n, k = weight.encoded_shape
    if many is not None or not _tells_by_itself(weight) or not is_untried(rows, n, k, biased=biased):
        return many
    whole = weight.at_hand().detach()
    find_product(rows, n, k, whole, biased=biased)
    many = find_products(weight, rows, biased=biased)
    if many is not None:
        del whole
        _scratch.release()  # it may be hundreds of MiB, and nothing needs it now
    return many


def _tells_by_itself(weight: PackedWeight) -> bool:
    return weight.format.exact and weight._numbers == torch.bfloat16 and not weight.transposed


def _tiles(weight: PackedWeight) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield runs of rows of the encoded matrix, decoded. Each is valid until the next."""
    n, k = weight.encoded_shape
    tile = TILE if weight.on_device is None else DEVICE_TILE
    rows = max(SLAB, tile // (k * weight.dtype.itemsize) // SLAB * SLAB)
    buffer = _buffer(weight, min(rows, n) * k * weight.dtype.itemsize, _tile)
    for start in range(0, n, rows):
        part = slice(start, min(n, start + rows))
        size = (part.stop - start) * k * weight.dtype.itemsize
        out = buffer[:size].view(weight.dtype).view(-1, k)
        (weight.on_device or weight.format).decode(weight.planes, n, k, part, out)
        yield part, out


def _buffer(weight: PackedWeight, size: int, scratch: "_Scratch") -> torch.Tensor:
    """Return scratch uint8 [size] where the planes are.

    On a device, torch's allocator reuses memory in the order of work.
    """
    return scratch.buffer(size) if weight.on_device is None else weight.planes[0].new_empty(size)


def _embedding(ids: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute ``functional.embedding``.

    Only the slabs with the rows ``ids`` are decoded, on a device only those rows.
    """
    if not isinstance(weight, PackedWeight) or weight.transposed:
        return functional.embedding(ids, _decoded(weight), *args, **kwargs)
    n, k = weight.encoded_shape
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n:
        raise IndexError("index out of range in self")  # torch's message
    flat = ids.reshape(-1)
    if weight.on_device is not None:
        return weight.on_device.rows(weight.planes, n, k, flat, weight.dtype).view(*ids.shape, k)
    out = torch.empty(len(flat), k, dtype=weight.dtype)
    buffer = torch.empty(SLAB, k, dtype=weight.dtype)
    slabs = flat // SLAB
    for slab in torch.unique(slabs).tolist():
        part = slice(slab * SLAB, min(n, (slab + 1) * SLAB))
        here = buffer[: part.stop - part.start]
        weight.format.decode(weight.planes, n, k, part, here)
        wanted = slabs == slab
        out[wanted] = here[flat[wanted] - part.start]
    return out.view(*ids.shape, k)


class _Scratch(threading.local):
    """A buffer, one per computing thread."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def buffer(self, size: int) -> torch.Tensor:
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.uint8)
        return self._buffer[:size]

    def release(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)


_scratch, _tile = _Scratch(), _Scratch()

_OWN: dict[Any, Callable[..., Any]] = {
    functional.linear: linear,
    functional.embedding: _embedding,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.addmm: addmm,
}
PRODUCTS = frozenset(_OWN)
"""Functions that compute on a weight as it is packed. All others decode it."""
