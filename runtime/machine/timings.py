"""How long computing takes on this machine, as reference models showed it; kept, so that not every plan measures."""

from dataclasses import replace
from typing import Literal

import xxhash
from pydantic import Field, ValidationError

from ...kernels.machine.machine import usable_cores
from ...kernels.memory.heap import bound_kernel_caches
from ...tiering.sim.devices import Drive, Memory
from . import cachefile
from .bit_trials import signature

_Seconds = Field(ge=0, allow_inf_nan=False)
_Speed = Field(gt=0, allow_inf_nan=False)
_Share = Field(ge=0, lt=1)


class ProductSpeeds(cachefile.Strict):
    """Of one data type: bytes of weights per second for one token, and bytes times tokens per second for many."""

    one: float = _Speed
    many: float = _Speed


class Delivery(cachefile.Strict):
    """Of the speed that a drive has by itself a model that waits for it gets the part ``share``: what is read is also
    verified and accounted for. While cores compute, the share ``contention`` of that is lost."""

    share: float = _Speed
    contention: float = _Share


class Timings(cachefile.Strict):
    """Of bfloat16 weights and one token, in seconds and bytes per second; ``products`` by data type.

    A layer of experts computes besides its weights ``layer_warm`` where these fit into the processor's caches, and
    ``layer_cold`` where ``cold`` bytes push all else out of them. A dense layer computes ``dense_layer`` besides, and a
    token ``token``, whatever its layers.

    While the drive delivers, experts lose the share ``contention`` of their speed, dense layers ``dense_contention``;
    what the drive delivers then is in ``delivery`` and ``dense_delivery``.
    """

    memory: float = _Speed
    overhead: float = _Seconds
    contention: float = _Share
    guess: float = _Seconds
    layer_warm: float = _Seconds
    layer_cold: float = _Seconds
    cold: int = Field(gt=0)
    dense_memory: float = _Speed
    dense_layer: float = _Seconds
    dense_contention: float = _Share
    token: float = _Seconds
    delivery: Delivery
    dense_delivery: Delivery
    products: dict[str, ProductSpeeds]

    def memory_for(self, dtype: str, *, experts: bool) -> Memory:
        """The memory out of which a model's weights come, which are of ``dtype``."""
        own, ours = self.products.get(dtype, self.products["float32"]), self.products["bfloat16"]
        bandwidth = (self.memory if experts else self.dense_memory) * own.one / ours.one
        return Memory(
            bandwidth,
            self.overhead if experts else 0.0,
            products=max(own.many, bandwidth),
            contention=self.contention if experts else self.dense_contention,
        )

    def beside_cores(self, drive: Drive, *, experts: bool) -> Drive:
        """``drive``, which was measured by itself, as a model is read from it."""
        found = self.delivery if experts else self.dense_delivery
        return replace(
            drive,
            bandwidth=drive.bandwidth * found.share,
            latency=drive.latency / found.share,
            single=drive.single * found.share,
            contention=found.contention,
        )

    def layer_seconds(self, size: int, *, experts: bool) -> float:
        """What a layer, of which a token uses ``size`` bytes, computes besides."""
        if not experts:
            return self.dense_layer
        return self.layer_warm + (self.layer_cold - self.layer_warm) * min(1.0, size / self.cold)


class _TimingsFile(cachefile.Strict):
    version: Literal[1] = 1
    holds_for: str
    timings: Timings


def load(threads: int | str) -> Timings | None:
    """What is kept of this machine, as it is set up now, for ``threads`` as in the configuration."""
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
    return f"{signature()}\n{threads} threads on {usable_cores()} cores"
