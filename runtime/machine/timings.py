"""Cached times of computing on this machine, from reference models, so that not every plan has to measure."""

from dataclasses import replace
from typing import Literal

import xxhash
from pydantic import Field, ValidationError

from ...kernels.machine.machine import count_usable_cores
from ...kernels.memory.heap import bound_kernel_caches
from ...tiering.sim.devices import Drive, Memory
from . import cachefile
from .bit_trials import signature

_Seconds = Field(ge=0, le=1e6, allow_inf_nan=False)
_Speed = Field(ge=1e-6, le=1e18, allow_inf_nan=False)
_Share = Field(ge=0, lt=1)


class ProductSpeeds(cachefile.Strict):
    """Speeds of products with weights of one data type: bytes of weights per second for one token, and bytes times
    tokens per second for many."""

    one: float = _Speed
    many: float = _Speed


class Delivery(cachefile.Strict):
    """The part of a drive's own speed that a model gets while it waits for the drive is ``share``: blocks are also
    verified and accounted for. While cores compute, the share ``contention`` of that is lost."""

    share: float = _Speed
    contention: float = _Share


class Timings(cachefile.Strict):
    """Times for bfloat16 weights and one token, in seconds and bytes per second; ``products`` by data type.

    Beside its weights, a layer of experts takes ``layer_warm`` seconds where these fit into the processor's caches, and
    ``layer_cold`` where ``cold`` bytes push everything else out of them. A dense layer takes ``dense_layer``, and a
    token takes ``token``, whatever its layers.

    While the drive delivers, experts lose the share ``contention`` of their speed, and dense layers
    ``dense_contention``. ``delivery`` and ``dense_delivery`` say what the drive delivers then.
    """

    memory: float = _Speed
    overhead: float = _Seconds
    contention: float = _Share
    guess: float = _Seconds
    layer_warm: float = _Seconds
    layer_cold: float = _Seconds
    cold: int = Field(gt=0, le=1 << 50)
    dense_memory: float = _Speed
    dense_layer: float = _Seconds
    dense_contention: float = _Share
    token: float = _Seconds
    delivery: Delivery
    dense_delivery: Delivery
    products: dict[str, ProductSpeeds]

    def memory_for(self, dtype: str, *, experts: bool) -> Memory:
        """A model of the memory that weights of ``dtype`` are read from."""
        own, ours = self.products.get(dtype, self.products["float32"]), self.products["bfloat16"]
        bandwidth = (self.memory if experts else self.dense_memory) * own.one / ours.one
        return Memory(
            bandwidth,
            self.overhead if experts else 0.0,
            products=max(own.many, bandwidth),
            contention=self.contention if experts else self.dense_contention,
        )

    def beside_cores(self, drive: Drive, *, experts: bool) -> Drive:
        """``drive``, which was measured by itself, as it is while a model is read from it."""
        found = self.delivery if experts else self.dense_delivery
        return replace(
            drive,
            bandwidth=drive.bandwidth * found.share,
            latency=drive.latency / found.share,
            single=drive.single * found.share,
            contention=found.contention,
        )

    def layer_seconds(self, size: int, *, experts: bool) -> float:
        """Seconds that a layer takes beside its weights, of which a token uses ``size`` bytes."""
        if not experts:
            return self.dense_layer
        return self.layer_warm + (self.layer_cold - self.layer_warm) * min(1.0, size / self.cold)


class _TimingsFile(cachefile.Strict):
    version: Literal[1] = 1
    holds_for: str
    timings: Timings


def load(threads: int | str) -> Timings | None:
    """The times that are kept for this machine as it is set up now, and for ``threads`` as configured; or None."""
    holds_for = _signature(threads)
    try:
        found = _TimingsFile.model_validate_json(cachefile.read(_name(holds_for)) or b"")
    except ValidationError:
        return None
    return found.timings if found.holds_for == holds_for else None


def keep(timings: Timings, threads: int | str) -> None:
    """Keep ``timings`` for this machine and ``threads``, if that can be."""
    holds_for = _signature(threads)
    cachefile.write(_name(holds_for), _TimingsFile(holds_for=holds_for, timings=timings).model_dump_json(indent=1))


def _name(holds_for: str) -> str:
    return f"computing-{xxhash.xxh3_64_hexdigest(holds_for.encode())}.json"


def _signature(threads: int | str) -> str:
    bound_kernel_caches()  # as for every model, or times would hold only before the first one is loaded
    return f"{signature()}\n{threads} threads on {count_usable_cores()} cores"
