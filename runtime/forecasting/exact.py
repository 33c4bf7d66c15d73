"""The faster of the two formats that keep every bit, on described devices (pure).

The smaller format takes less of drives, memory and buses, and more of the cores. Which of that counts depends on the
machine and on how much of the model is in memory, so both are simulated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...tiering.planner.arrangement import Arrangement, Outline
from ...tiering.sim.devices import Bus, Memory
from .assumed import assumed_routes
from .forecast import CoreTimings, Devices, Forecast, Forecaster, count_routed

AS_IS, LOSSLESS = "as-is", "lossless"
LEAST_GAIN = 1.03
"""``lossless`` must be so many times as fast as ``as-is``. Nearer than that, forecasts are not, and packing it takes
longer."""
_PROMPT = 16
"""Tokens of the prompt before those that count: it warms the caches."""


@dataclass(frozen=True, slots=True)
class CoresWithRate:
    """``timings`` of bfloat16 weights as they are, at ``factor`` times their rate: CoreTimings of others."""

    timings: CoreTimings
    factor: float

    @property
    def token(self) -> float:
        """As CoreTimings."""
        return self.timings.token

    @property
    def guess(self) -> float:
        """As CoreTimings."""
        return self.timings.guess

    def memory_for(self, dtype: str, *, experts: bool) -> Memory:
        """As CoreTimings."""
        found = self.timings.memory_for(dtype, experts=experts)
        bandwidth = found.bandwidth * self.factor
        return replace(found, bandwidth=bandwidth, products=max(found.products, bandwidth))

    def layer_seconds(self, size: int, *, experts: bool) -> float:
        """As CoreTimings."""
        return self.timings.layer_seconds(size, experts=experts)


@dataclass(frozen=True, slots=True)
class ExactWay:
    """A model in one exact format on some devices: its ``outline``, and its ``arrangement`` in the memory there is,
    None where that is too small. ``bus`` leads to its device, if it has one."""

    outline: Outline
    arrangement: Arrangement | None
    devices: Devices
    bus: Bus | None = None

    def forecast(self) -> Forecast | None:
        """How fast it is; None where it does not run."""
        if self.arrangement is None:
            return None
        layers = self.outline.layers
        routes = assumed_routes(layers, count_routed(layers, _PROMPT)) if layers else None
        forecaster = Forecaster(self.outline, self.devices, routes, prompt_tokens=_PROMPT)
        return forecaster.forecast(self.arrangement, self.bus)


@dataclass(frozen=True, slots=True)
class ExactChoice:
    """The exact ``format`` to take, ``why`` (the rest of a sentence that begins with its name), and the tokens per
    second of each: None for one that does not run, none at all where nothing was compared."""

    format: str
    why: str
    tokens_per_second: Mapping[str, float | None]

    def corrected(self, known: str, tokens_per_second: float) -> "ExactChoice":
        """The same where the format ``known`` has ``tokens_per_second``, by a forecast that knows more: the other is as
        many times as fast as before."""
        before = self.tokens_per_second.get(known)
        if not before:
            return self
        speeds = {
            name: None if each is None else each * tokens_per_second / before
            for name, each in self.tokens_per_second.items()
        }
        return replace(self, tokens_per_second=speeds)


def take_as_is(why: str) -> ExactChoice:
    """The choice where there is none: ``why`` says what speaks against ``lossless``."""
    return ExactChoice(AS_IS, why, {})


def choose_exact(as_is: ExactWay, lossless: ExactWay) -> ExactChoice:
    """Choose between two ways to store a model. Raises DeviceModelError for devices that cannot be."""
    plain, packed = as_is.forecast(), lossless.forecast()
    speeds = {
        name: None if found is None else found.tokens_per_second for name, found in ((AS_IS, plain), (LOSSLESS, packed))
    }
    if packed is None:
        return ExactChoice(AS_IS, "does not fit, and neither does lossless" if plain is None else "fits", speeds)
    if plain is None:
        return ExactChoice(LOSSLESS, "fits into this memory, as-is does not", speeds)
    gain = packed.tokens_per_second / plain.tokens_per_second
    if gain >= LEAST_GAIN:
        return ExactChoice(LOSSLESS, f"is {gain:.2f} times as fast: as-is is limited by {plain.limited_by}", speeds)
    if gain > 1:
        return ExactChoice(AS_IS, f"is nearly as fast as lossless, which gains {gain - 1:.1%} and packs slower", speeds)
    return ExactChoice(AS_IS, f"is {1 / gain:.2f} times as fast: lossless is limited by {packed.limited_by}", speeds)
