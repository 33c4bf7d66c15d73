"""Many rows in parts: the memory for activations is then bounded by the part, not by the number of rows.

Parts give the bits of the whole if every row is computed alike in both. Two things can prevent that. The library under
torch may multiply another number of rows in another order, which a trial shows. And torch divides an elementwise
operation between threads by elements, not by rows. It computes the remainder of each share one by one, for some
functions with other bits. ``Probe`` finds these functions. If there are any, only row counts without a remainder are
computed in parts.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = 512
"""Rows of a part. The last part has up to twice as many. Smaller parts are slower, because the library copies the
weight for each.
"""

BIT_TRIALS: dict[str, bool] = {}
"""Results of trials by description: whether parts, or padding rows, leave the bits unchanged."""

RowFunction = Callable[[torch.Tensor], Any]

_SHARE = 32768  # elements below which torch does not divide an elementwise operation between threads
_STEP = 128  # bytes of two vector registers: the step of the computation in a share
_ALONE = 7  # numbers, too few for a vector
_PRODUCTS = frozenset({"mm", "addmm", "_unsafe_view"})
# IEEE 754 prescribes every rounding: the bits are the same alone and in a vector.
_EXACT = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "abs", "relu", "clamp", "clamp_min", "clamp_max"})
_EXACT |= {"maximum", "minimum", "clone", "_to_copy"}


def divide_rows(rows: int) -> list[slice]:
    """Divide ``rows`` in order into parts of ROWS. There is a single part below twice ROWS."""
    starts = range(0, max(1, rows // ROWS) * ROWS, ROWS)
    return [slice(start, rows if start == starts[-1] else start + ROWS) for start in starts]


def parts_keep_bits(
    compute: RowFunction, sample: Callable[[int], torch.Tensor], rows: int, kind: str, widths: set[int]
) -> bool:
    """Return whether ``compute`` gives the same bits for ``rows`` rows in ``parts`` as for all of them at once.

    ``sample(n)`` returns the first n of the rows [.., n, width]. ``kind`` names all that the bits depend on, except the
    dtype and the threads. ``widths`` are the widths of the intermediate results. Each ``kind`` is tried once, on two
    parts.
    """
    if rows < 2 * ROWS:
        return False
    threads, dtype = torch.get_num_threads(), sample(1).dtype
    key = f"parts of {ROWS} rows, {dtype}, {kind}, {threads} threads"
    anywhere = f"any number of {key}"
    whole = all(fills_vectors(n, widths, dtype, threads) for n in (ROWS, 2 * ROWS))
    if key not in BIT_TRIALS or anywhere not in BIT_TRIALS:
        part = sample(ROWS)
        with Probe() as probe:
            compute(part)
        if not probe.rowwise or not (probe.alike or whole):
            BIT_TRIALS[key] = BIT_TRIALS[anywhere] = False
        elif (equal := _equal(compute, sample(2 * ROWS))) is not None:
            BIT_TRIALS[key], BIT_TRIALS[anywhere] = equal, probe.alike
    if not BIT_TRIALS.get(key, False):
        return False
    last = divide_rows(rows)[-1]
    return BIT_TRIALS[anywhere] or all(
        fills_vectors(n, widths, dtype, threads) for n in (rows, ROWS, last.stop - last.start)
    )


def _equal(compute: RowFunction, sample: torch.Tensor) -> bool | None:
    """Return whether parts of ``sample`` give the bits of the whole. None if its numbers show nothing."""
    whole = compute(sample)
    if not isinstance(whole, torch.Tensor) or whole.shape[:-1] != sample.shape[:-1]:
        return False
    if not bool((whole != whole[..., :1]).any(-1).all()):  # equal numbers would show no order of summation
        return None
    return torch.equal(
        whole, torch.cat([compute(sample[..., part, :]) for part in divide_rows(sample.shape[-2])], dim=-2)
    )


def fills_vectors(rows: int, widths: Iterable[int], dtype: torch.dtype, threads: int) -> bool:
    """Return whether every thread's share of ``rows`` rows of each width consists of whole vectors."""
    step = _STEP // dtype.itemsize
    for width in widths:
        shares = 1 if rows * width < _SHARE else min(threads, -(-rows * width // _SHARE))
        if width % step or -(-rows * width // shares) % step:
            return False
    return True


class Probe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations of a computation.

    ``rowwise``: there are only products and elementwise operations. ``alike``: none of these gives other bits for a
    number alone than for a number in a vector.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rowwise = self.alike = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # inference mode shows composite operations as one
            inside = func.decompose(*args, **kwargs)
        if inside is not NotImplemented:
            return inside
        name = func.overloadpacket.__name__
        if func.is_view or name in _PRODUCTS or (name in _EXACT and "alpha" not in kwargs):
            pass
        elif torch.Tag.pointwise in func.tags:
            self.alike = self.alike and _alike(func, args, kwargs)
        else:
            self.rowwise = False
        return func(*args, **kwargs)


def _alike(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the elementwise ``func`` of one tensor computes each number alone as in a vector.

    16-bit dtypes are tried on all their numbers, others on some numbers of the argument.
    """
    tensors = [argument for argument in (*args, *kwargs.values()) if isinstance(argument, torch.Tensor)]
    if len(tensors) != 1 or tensors[0] is not args[0] or func._schema.is_mutable:
        return False
    if args[0].dtype.itemsize == 2:
        numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(args[0].dtype)
    else:
        numbers = args[0].flatten()[: 1 << 16].clone()
    together = func(numbers, *args[1:], **kwargs)
    alone = torch.cat([func(few, *args[1:], **kwargs) for few in torch.split(numbers, _ALONE)])
    return bool(((together == alone) | (together.isnan() & alone.isnan())).all())
