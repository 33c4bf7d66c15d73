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
from .watch import Watch

_N, _K = 1024, 2048
_MEMORY = 64 << 20
"""Bytes of all copies of what is measured: more than a processor's caches hold."""
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
    plain = [weights.clone() for _ in range(_MEMORY // weights.nbytes)]
    packed = [plane.clone() for _ in range(_MEMORY // weights.nbytes)]
    if device is not None and device.type != "cpu":
        works, wait = _on_device(plain, packed, device), partial(torch.cuda.synchronize, device)
        return ExactRates(*(_rate(work, wait) for work in works))
    threads, watch = torch.get_num_threads(), Watch(None)
    found = ExactRates(*(_rate(work) for work in _on_cores(plain, packed)))
    if threads == 1 or not watch.done().doubtful:
        return found
    torch.set_num_threads(1)
    try:
        return ExactRates(*(_rate(work) for work in _on_cores(plain, packed)))
    finally:
        torch.set_num_threads(threads)


class _Work(NamedTuple):
    """``run`` is called with numbers below ``copies`` and reads ``size`` bytes each time."""

    run: Callable[[int], object]
    copies: int
    size: int


def _on_cores(plain: list[torch.Tensor], packed: list[torch.Tensor]) -> list[_Work]:
    """With as many threads as torch has now."""
    row, lossless = torch.randn(1, _K).bfloat16(), Lossless()
    ours, theirs = find_product(1, _N, _K), lossless.find_product(1, _N, _K)
    room = torch.empty_like(plain[0])
    places = [locate(lossless, (plane,), _N, _K) for plane in packed]

    def as_is(copy: int) -> object:
        if ours is None:
            return functional.linear(row, plain[copy])
        return ours([plain[copy].data_ptr()], [row.data_ptr()])

    def decoded(copy: int) -> object:
        if theirs is not None:
            return theirs([places[copy]], [row.data_ptr()])
        lossless.decode([packed[copy]], _N, _K, slice(0, _N), room)
        return functional.linear(row, room)

    return [_Work(as_is, len(plain), plain[0].nbytes), _Work(decoded, len(packed), packed[0].nbytes)]


def _on_device(plain: list[torch.Tensor], packed: list[torch.Tensor], device: torch.device) -> list[_Work]:
    format_ = find_device_format(Lossless.name)
    assert format_ is not None, "lossless is a format of devices"
    here, there = [weights.to(device) for weights in plain], [plane.to(device) for plane in packed]
    row, room = torch.randn(1, _K).bfloat16().to(device), torch.empty_like(here[0])

    def as_is(copy: int) -> object:
        return functional.linear(row, here[copy])

    def decoded(copy: int) -> object:
        format_.decode([there[copy]], _N, _K, slice(0, _N), room)
        return functional.linear(row, room)

    return [_Work(as_is, len(plain), plain[0].nbytes), _Work(decoded, len(packed), packed[0].nbytes)]


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
