"""Cached times of computing on this machine, from reference models, so that not every plan has to measure."""

from dataclasses import replace
from typing import Literal

import xxhash
from pydantic import Field, ValidationError, field_validator

from ...kernels.machine.machine import count_usable_cores
from ...kernels.memory.heap import bound_kernel_caches
from ...tiering.policy.measured import Measured
from ...tiering.policy.trust import moved
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
    products: dict[str, ProductSpeeds] = Field(max_length=16)

    @field_validator("products")
    @classmethod
    def _complete(cls, products: dict[str, ProductSpeeds]) -> dict[str, ProductSpeeds]:
        if not products.keys() >= {"bfloat16", "float32"}:
            raise ValueError("speeds that others are compared with are missing")
        return products

    @classmethod
    def usual(cls, memory: float) -> "Timings":
        """Typical timings of a machine whose products read ``memory`` bytes per second. They serve to compare formats,
        not to forecast."""
        memory = _speed(memory)
        speeds = ProductSpeeds(one=memory, many=_speed(8 * memory))
        return cls(
            memory=memory,
            overhead=3e-4,
            contention=0.2,
            guess=1e-4,
            layer_warm=5e-4,
            layer_cold=1.5e-3,
            cold=32 << 20,
            dense_memory=memory,
            dense_layer=3e-4,
            dense_contention=0.2,
            token=2e-3,
            delivery=Delivery(share=0.8, contention=0.0),
            dense_delivery=Delivery(share=0.85, contention=0.1),
            products={"bfloat16": speeds, "float32": speeds},
        )

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

    def times(self, faster: float, longer: float) -> "Timings":
        """The same machine where memory and products are ``faster``, and all besides takes ``longer``, as factors."""
        speeds = {name: _speed(getattr(self, name) * faster) for name in ("memory", "dense_memory")}
        names = ("overhead", "guess", "layer_warm", "layer_cold", "dense_layer", "token")
        seconds = {name: min(1e6, getattr(self, name) * longer) for name in names}
        products = {
            dtype: ProductSpeeds(one=_speed(each.one * faster), many=_speed(each.many * faster))
            for dtype, each in self.products.items()
        }
        return self.model_copy(update={**speeds, **seconds, "products": products})

    def layer_seconds(self, size: int, *, experts: bool) -> float:
        """Seconds that a layer takes beside its weights, of which a token uses ``size`` bytes."""
        if not experts:
            return self.dense_layer
        return self.layer_warm + (self.layer_cold - self.layer_warm) * min(1.0, size / self.cold)


class Pulse(cachefile.Strict):
    """A brief look at the machine found these: bytes per second of products, and seconds of a few small operations."""

    products: float = _Speed
    steps: float = Field(ge=1e-9, le=1e6, allow_inf_nan=False)


class KeptTimings(cachefile.Strict):
    """``timings``, when and how well they were ``measured``, and the ``pulse`` of the machine then."""

    timings: Timings
    measured: Measured
    pulse: Pulse

    def after(self, look: Pulse, found: Measured) -> "KeptTimings":
        """These after a brief look that ``found`` no other programs: changed as the pulse has changed."""
        faster, longer = moved(look.products / self.pulse.products), moved(look.steps / self.pulse.steps)
        if faster == longer == 1.0:
            return self.model_copy(update={"measured": self.measured.seen_again(found)})
        pulse = Pulse(
            products=_speed(self.pulse.products * faster), steps=min(1e6, max(1e-9, self.pulse.steps * longer))
        )
        measured = replace(found, spread=max(found.spread, self.measured.spread))
        return KeptTimings(timings=self.timings.times(faster, longer), measured=measured, pulse=pulse)


class _TimingsFile(cachefile.Strict):
    version: Literal[2] = 2
    holds_for: str
    kept: KeptTimings


def _speed(value: float) -> float:
    return min(1e18, max(1e-6, value))


def load(threads: int | str) -> KeptTimings | None:
    """The times that are kept for this machine as it is set up now, and for ``threads`` as configured; or None."""
    holds_for = signature_of(threads)
    try:
        found = _TimingsFile.model_validate_json(cachefile.read(_name(holds_for)) or b"")
    except ValidationError:
        return None
    return found.kept if found.holds_for == holds_for else None


def keep(found: KeptTimings, threads: int | str, *, anyway: bool = False) -> None:
    """Keep ``found`` for this machine and ``threads``, if that can be, unless what is kept can be trusted more
    (``anyway``: even then, for it was refuted)."""
    kept = load(threads)
    if kept is not None and not anyway and not found.measured.replaces(kept.measured):
        return
    holds_for = signature_of(threads)
    cachefile.write(_name(holds_for), _TimingsFile(holds_for=holds_for, kept=found).model_dump_json(indent=1))


def _name(holds_for: str) -> str:
    return f"computing-{xxhash.xxh3_64_hexdigest(holds_for.encode())}.json"


def signature_of(threads: int | str) -> str:
    """Names everything that times of computing with ``threads`` depend on."""
    bound_kernel_caches()  # as for every model, or times would hold only before the first one is loaded
    return f"{signature()}\n{threads} threads on {count_usable_cores()} cores"
