"""The speed of a model: its planner under some budget, simulated on described devices (pure)."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...tiering.errors import DeviceModelError
from ...tiering.planner.arrangement import Arrangement, ExpertLayer, Outline
from ...tiering.planner.planner import Planner
from ...tiering.policy.lessons import PerToken
from ...tiering.sim.calibration import timed
from ...tiering.sim.devices import Bus, Drive, Memory
from ...tiering.sim.host_tier import Below
from ...tiering.sim.kv import Context
from ...tiering.sim.outcome import Outcome
from ...tiering.sim.simulator import simulate
from ...tiering.sim.workload import Layer, Pass, Workload, guessing, layers_of
from ..routing.routed import RoutedTokens

LEAST, MOST, ROUTED = 8, 24, 480
"""Tokens that warm the cache after a prompt, and then the same number that count. A model with more layers of experts
needs fewer, since its chances even out sooner: its tokens route ROUTED times."""
WARM_KV = 2
"""Tokens that look at the context before those that count."""
PROMPT = 256
"""Tokens of a prompt whose routing is used. A longer prompt hardly uses any other experts."""
PRECISION = 0.75
"""Share of the guessed experts that come, where nothing else is said: docs/explanation/performance.md, in bytes."""

Limit = Literal["flash", "bus", "memory", "compute"]


class CoreTimings(Protocol):
    """How fast the cores of a machine compute; runtime/machine/timings.py measures it."""

    @property
    def token(self) -> float:
        """Seconds of a token, besides its layers."""

    @property
    def guess(self) -> float:
        """Seconds of guessing the experts of a layer."""

    def memory_for(self, dtype: str, *, experts: bool) -> Memory:
        """The memory, as products with weights of ``dtype`` see it."""

    def layer_seconds(self, size: int, *, experts: bool) -> float:
        """Seconds of a layer with ``size`` bytes of weights, besides these."""


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a run: ``drives`` in the order of the bundle's, and the cores."""

    drives: Sequence[Drive]
    timings: CoreTimings


@dataclass(frozen=True, slots=True)
class Forecast:
    """The speed of decoding with a warm cache, and of a prompt with an empty one. ``hit_ratio`` is the share of
    requested experts found in memory, or, in a model without experts, of streamed layers. ``limited_by`` is busy
    longest: a drive, the bus to a device, cores that wait for memory, or cores that compute.
    ``kv_flash_bytes_per_token`` is None without a context."""

    tokens_per_second: float
    time_to_first_token_s: float
    flash_bytes_per_token: int
    hit_ratio: float
    limited_by: Limit
    bytes_copied_per_token: int = 0
    kv_flash_bytes_per_token: int | None = None


class Forecaster:
    """Forecasts for one model and prompt, on some devices, for any arrangement."""

    def __init__(
        self,
        outline: Outline,
        devices: Devices,
        routes: RoutedTokens | None,
        *,
        prompt_tokens: int,
        precision: float = PRECISION,
        context: Context | None = None,
    ) -> None:
        """``routes`` are of the model's layers, and begin again where they end; None for a model without experts.
        ``precision`` is the share of the guessed experts that come. Tokens look at the ``context``, if one is given;
        the prompt does not.

        Raises DeviceModelError for devices that cannot be.
        """
        self._outline, self._context = outline, context
        self._lengths = {block.id: block.length for block in outline.blocks}
        self._per_token = {layer.path: layer.per_token for layer in outline.layers}
        self._plain = passed_layers(outline)
        self.bytes_per_token = sum(map(self._bytes_used, self._plain))
        """Bytes of weights that a token uses."""
        self._take(devices)
        decoded = count_decoded(outline.layers)
        # Two tokens bring pages to where they will be; they cost more to simulate than weights.
        passes = [Pass(prompt_tokens, attends=False)] + [Pass(1, attends=False)] * (decoded - WARM_KV)
        passes += [Pass(1)] * (decoded + WARM_KV)
        if routes:
            passes = _route(passes, outline, routes)
        if routes and outline.foreseen:
            experts = min(layer.experts for layer in outline.layers)
            passes = list(guessing(passes, experts, precision=precision))
        self._passes = passes

    def _take(self, devices: Devices) -> None:
        self._devices = devices
        self.memory: Memory = devices.timings.memory_for(self._outline.dtype, experts=bool(self._outline.layers))
        layers = timed(self._plain, self._besides)
        layers[-1] = replace(layers[-1], seconds=layers[-1].seconds + devices.timings.token)
        self._layers = layers if self._context is None else with_kv(layers, len(self._context.layers))

    def on(self, devices: Devices) -> "Forecaster":
        """The same on other ``devices``."""
        other = copy.copy(self)
        other._take(devices)
        return other

    def forecast(self, arrangement: Arrangement, bus: Bus | None = None) -> Forecast:
        """Simulate ``arrangement``; ``bus`` leads from host memory to its device, if it has one. Raises
        DeviceModelError where that is missing."""
        return self._forecast(self._simulate(arrangement, bus))

    def token(self, arrangement: Arrangement, bus: Bus | None = None) -> PerToken:
        """Simulate ``arrangement`` for what a token takes. Raises as ``forecast``."""
        found = self._simulate(arrangement, bus)
        figures = found.seconds, found.stall_seconds, found.counters.busy_seconds, found.bytes_read
        return PerToken(*(figure / found.tokens for figure in figures))

    def _simulate(self, arrangement: Arrangement, bus: Bus | None) -> Outcome:
        host = arrangement.host_setup.planner()
        if arrangement.device_setup is None:
            return self._simulated(host, None)
        if bus is None:
            raise DeviceModelError("the arrangement has a device; name the bus that leads to it")
        return self._simulated(arrangement.device_setup.planner(), Below(host, bus))

    def _simulated(self, planner: Planner, below: Below | None) -> Outcome:
        return simulate(
            Workload(self._layers, [self._passes], self._devices.timings.guess, self._context),
            planner,
            drives=self._devices.drives,
            memory=self.memory,
            below=below,
            untimed=1 + count_decoded(self._outline.layers),
        )

    def _forecast(self, outcome: Outcome) -> Forecast:
        prompt = outcome.untimed[0]
        return Forecast(
            tokens_per_second=outcome.tokens_per_second,
            time_to_first_token_s=prompt.end - prompt.begin,
            flash_bytes_per_token=round(outcome.bytes_read / outcome.tokens),
            hit_ratio=outcome.hit_ratio,
            limited_by=self._limit(outcome),
            bytes_copied_per_token=round(outcome.bytes_copied / outcome.tokens),
            kv_flash_bytes_per_token=None if self._context is None else round(outcome.kv_bytes_read / outcome.tokens),
        )

    def _limit(self, outcome: Outcome) -> Limit:
        if outcome.limited_by != "memory":
            return outcome.limited_by
        size = self.bytes_per_token + (0 if self._context is None else self._context.size)
        weights = outcome.tokens * self.memory.seconds(size)
        return "memory" if weights >= outcome.compute_seconds / 2 else "compute"

    def _besides(self, layer: Layer) -> float:
        return self._devices.timings.layer_seconds(self._bytes_used(layer), experts=bool(layer.experts))

    def _bytes_used(self, layer: Layer) -> int:
        dense = sum(self._lengths[block] for block in layer.dense)
        if not layer.experts:
            return dense
        return dense + self._per_token[layer.experts[0].module] * self._lengths[layer.experts[0]]


def with_kv(layers: Sequence[Layer], count: int) -> list[Layer]:
    """``layers`` with the ``count`` layers of a context that have KV dealt to those in the model's outermost list, in
    order and evenly; to the last one where there are none."""
    inner = [n for n, layer in enumerate(layers) if re.search(r"\.\d+\.", f"{(*layer.dense, *layer.experts)[:1]}")]
    where = inner or [len(layers) - 1]
    dealt: dict[int, list[int]] = {}
    for number in range(count):
        dealt.setdefault(where[number * len(where) // count], []).append(number)
    return [replace(layer, kv=tuple(dealt.get(n, ()))) for n, layer in enumerate(layers)]


def passed_layers(outline: Outline) -> list[Layer]:
    """The layers that a token passes. An embedding that nothing else uses is left out: a token takes one row of it."""
    return layers_of(block.id for block in outline.blocks if not outline.embeddings.get(block.id))


def count_decoded(layers: Sequence[ExpertLayer]) -> int:
    """Tokens that warm the cache, and the same number that count."""
    return max(LEAST, min(MOST, ROUTED // max(1, len(layers))))


def count_routed(layers: Sequence[ExpertLayer], prompt_tokens: int) -> int:
    """Tokens whose routing a forecast uses."""
    return min(prompt_tokens, PROMPT) + 2 * count_decoded(layers)


def _route(passes: Sequence[Pass], outline: Outline, routes: RoutedTokens) -> list[Pass]:
    """Give each of ``passes`` the experts that ``routes`` have for it."""
    by_path = {layer.path: layer for layer in routes.layers}
    layers = [by_path[layer.path] for layer in outline.layers]
    routed, token = [], 0
    for each in passes:
        rows = np.arange(token, token + min(each.tokens, PROMPT)) % routes.tokens
        chosen = [_different(layer.chosen[rows], layer.experts) for layer in layers]
        routed.append(replace(each, chosen=chosen, choices=each.tokens * max(layer.top_k for layer in layers)))
        token += len(rows)
    return routed


def _different(chosen: npt.NDArray[Any], experts: int) -> list[int]:
    """The experts in ``chosen``, below ``experts``, in ascending order."""
    return [expert for expert in np.unique(chosen).tolist() if expert < experts]
