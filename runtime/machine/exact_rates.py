"""How fast products read weights here, as they are and lossless: a measurement of a tenth of a second."""

import math
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from ...kernels.cuda.registry import find_device_format
from ...kernels.formats.lossless import Lossless
from ...kernels.formats.planes import locate
from ...kernels.products.few_rows import find_product
from ...tiering.units import align_up
from .watch import Watch

_N, _K = 1024, 2048
_MEMORY = 40 << 20
"""Bytes of all copies of what is measured: more than most processors' caches hold, and little beside any budget."""
_ALIGNMENT = 64
_SECONDS = 0.04


class ExactRates(NamedTuple):
    """Bytes per second, of what is stored, that products of one token read: weights as they are, and lossless."""

    as_is: float
    lossless: float

    def of(self, formats: Collection[str]) -> float:
        """The rate of a model that has weights in these ``formats``."""
        return self.lossless if Lossless.name in formats else self.as_is


def measure_exact(device: torch.device | None = None) -> ExactRates:
    """Measure on ``device``, or with torch's threads on the cores: with one where other programs take cores, for then
    threads wait for each other. Raises ImportError for a device without Triton."""
    weights = torch.randn(_N, _K, generator=torch.Generator().manual_seed(0)).bfloat16()
    (plane,) = Lossless().encode([weights], _N, _K)
    if device is not None and device.type != "cpu":
        wait = partial(torch.cuda.synchronize, device)
        as_is = _rate(_as_is_on(device, _copies(weights)), wait)
        return ExactRates(as_is, _rate(_lossless_on(device, _copies(plane)), wait))
    threads, watch = torch.get_num_threads(), Watch(None)
    found = _measure_cores(weights, plane)
    if threads == 1 or not watch.done().doubtful:
        return found
    torch.set_num_threads(1)
    try:
        return _measure_cores(weights, plane)
    finally:
        torch.set_num_threads(threads)


def _measure_cores(weights: torch.Tensor, plane: torch.Tensor) -> ExactRates:
    """With as many threads as torch has now. The copies of one are gone before those of the other are made."""
    as_is = _rate(_as_is(_copies(weights)))
    return ExactRates(as_is, _rate(_lossless(_copies(plane))))


def _copies(one: torch.Tensor) -> list[torch.Tensor]:
    """As many copies of ``one`` as more than fill a processor's caches, in one piece of memory, which goes at once."""
    count, length = _MEMORY // one.nbytes, align_up(one.numel(), _ALIGNMENT)
    room = torch.empty(count, length, dtype=one.dtype)
    room[:, : one.numel()] = one.flatten()
    return [copy[: one.numel()].view(one.shape) for copy in room]


class _Work(NamedTuple):
    """``run`` is called with numbers below ``copies`` and reads ``size`` bytes each time."""

    run: Callable[[int], object]
    copies: int
    size: int


def _as_is(copies: list[torch.Tensor]) -> _Work:
    """The product of a row with each of ``copies`` [n, k]."""
    row, product = torch.randn(1, _K).bfloat16(), find_product(1, _N, _K)

    def run(copy: int) -> object:
        if product is None:
            return functional.linear(row, copies[copy])
        return product([copies[copy].data_ptr()], [row.data_ptr()])

    return _Work(run, len(copies), copies[0].nbytes)


def _lossless(copies: list[torch.Tensor]) -> _Work:
    """The product of a row with each of the planes ``copies``."""
    row, lossless, room = torch.randn(1, _K).bfloat16(), Lossless(), torch.empty(_N, _K, dtype=torch.bfloat16)
    product, places = lossless.find_product(1, _N, _K), [locate(lossless, (plane,), _N, _K) for plane in copies]

    def run(copy: int) -> object:
        if product is not None:
            return product([places[copy]], [row.data_ptr()])
        lossless.decode([copies[copy]], _N, _K, slice(0, _N), room)
        return functional.linear(row, room)

    return _Work(run, len(copies), copies[0].nbytes)


def _as_is_on(device: torch.device, copies: list[torch.Tensor]) -> _Work:
    row, there = torch.randn(1, _K).bfloat16().to(device), [weights.to(device) for weights in copies]
    return _Work(lambda copy: functional.linear(row, there[copy]), len(there), there[0].nbytes)


def _lossless_on(device: torch.device, copies: list[torch.Tensor]) -> _Work:
    format_ = find_device_format(Lossless.name)
    assert format_ is not None, "lossless is a format of devices"
    row, there = torch.randn(1, _K).bfloat16().to(device), [plane.to(device) for plane in copies]
    room = torch.empty(_N, _K, dtype=torch.bfloat16, device=device)

    def run(copy: int) -> object:
        format_.decode([there[copy]], _N, _K, slice(0, _N), room)
        return functional.linear(row, room)

    return _Work(run, len(there), there[0].nbytes)


def _rate(work: _Work, wait: Callable[[], object] = lambda: None) -> float:
    """The best rate of some turns with all copies, in bytes per second. ``wait`` waits for the end of one."""
    best, spent = math.inf, 0.0
    with torch.inference_mode():
        work.run(0)
        wait()
        while spent < _SECONDS:
            start = time.perf_counter()
            for copy in range(work.copies):
                work.run(copy)
            wait()
            took = time.perf_counter() - start
            best, spent = min(best, took), spent + took
    return work.copies * work.size / best
