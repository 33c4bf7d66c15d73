"""How fast products read weights here, as they are and lossless: a measurement of a tenth of a second."""

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from ...kernels.cuda.registry import find_device_format
from ...kernels.formats.lossless import Lossless
from .row_products import Work, best_rate, copy_planes, packed_product, plain_product
from .watch import Watch

_N, _K = 1024, 2048
_MEMORY = 40 << 20
"""Bytes of all copies of what is measured: more than most processors' caches hold, and little beside any budget."""
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
    row = torch.randn(1, _K).bfloat16()
    if device is not None and device.type != "cpu":
        wait = partial(torch.cuda.synchronize, device)
        as_is = best_rate(_as_is_on(device, weights, row), _SECONDS, wait)
        return ExactRates(as_is, best_rate(_lossless_on(device, weights, row), _SECONDS, wait))
    threads, watch = torch.get_num_threads(), Watch(None)
    found = _measure_cores(weights, row)
    if threads == 1 or not watch.done().doubtful:
        return found
    torch.set_num_threads(1)
    try:
        return _measure_cores(weights, row)
    finally:
        torch.set_num_threads(threads)


def _measure_cores(weights: torch.Tensor, row: torch.Tensor) -> ExactRates:
    """With as many threads as torch has now. The copies of one are gone before those of the other are made."""
    as_is = best_rate(plain_product(weights, row, _MEMORY), _SECONDS)
    return ExactRates(as_is, best_rate(packed_product(Lossless(), weights, row, _MEMORY), _SECONDS))


def _as_is_on(device: torch.device, weights: torch.Tensor, row: torch.Tensor) -> Work:
    there = [planes[0].to(device) for planes in copy_planes([weights], _MEMORY)]
    moved = row.to(device)
    return Work(lambda copy: functional.linear(moved, there[copy]), len(there), weights.nbytes, False)


def _lossless_on(device: torch.device, weights: torch.Tensor, row: torch.Tensor) -> Work:
    format_ = find_device_format(Lossless.name)
    assert format_ is not None, "lossless is a format of devices"
    (plane,) = Lossless().encode([weights], _N, _K)
    there = [planes[0].to(device) for planes in copy_planes([plane], _MEMORY)]
    moved, room = row.to(device), torch.empty(_N, _K, dtype=torch.bfloat16, device=device)

    def run(copy: int) -> object:
        format_.decode([there[copy]], _N, _K, slice(0, _N), room)
        return functional.linear(moved, room)

    return Work(run, len(there), plane.nbytes, True)
