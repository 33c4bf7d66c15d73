"""Forecasts of one model under any budget: from rates of this machine, and from what earlier runs have taught."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ...kernels.devices import measure
from ...kernels.devices.base import Device
from ...kernels.machine.power import is_on_battery
from ...tiering.errors import BudgetTooSmall
from ...tiering.planner.arrangement import Arrangement, MemoryBudgets
from ...tiering.policy.lessons import (
    Lesson,
    Run,
    Span,
    beside_others,
    either,
    learn,
    nearest,
    refutes,
    remaining,
    slowest_seen,
    taught,
    typical_token,
    untaught,
)
from ...tiering.sim.devices import Bus
from ...tiering.sim.kv import Context
from ...tiering.store.bundle.manifest_file import read_manifest
from ..config.config import Config
from ..forecasting.assumed import assumed_routes
from ..forecasting.exact import LOSSLESS
from ..forecasting.forecast import Devices, Forecast, Forecaster, count_routed
from ..loading.arrangement import arrange_model
from ..loading.exact_choice import product_factor
from ..loading.run_name import run_name
from ..machine import runs_file
from ..machine.drive_speeds import existing
from ..machine.exact_rates import ExactRates, measure_exact
from ..routing.routed import RoutedTokens
from . import reference
from .report import MeasuredSpeeds, RestsOn
from .sketch import ModelSketch, PlannedDrives
from .spread_devices import MachineNow, spread_over


class BudgetForecasts:
    """Forecasts of one model under any budget of host memory, on measured drives and on the cores of this machine."""

    def __init__(
        self,
        found: ModelSketch,
        drives: PlannedDrives,
        settings: Config,
        budgets: MemoryBudgets,
        device: Device | None,
        routes: RoutedTokens | None,
        prompt_tokens: int,
        context: Context | None,
        runs: Sequence[Run],
    ) -> None:
        """``budgets`` must be enough. ``runs`` are earlier ones of the model."""
        self.found, self.outline, self.budgets, self.prompt_tokens = found, found.outline(), budgets, prompt_tokens
        self._settings, self._drives, self._context, self._device = settings, drives, context, device
        layers = self.outline.layers
        self.routing = None if not layers else routes.text if routes else "assumed"
        """The text of the routing trace, or "assumed"; None without experts."""
        if layers and routes is None:
            routes = assumed_routes(layers, count_routed(layers, prompt_tokens))
        self._bus = None if device is None else Bus(measure.measure_bus(device)[0])
        self._unmeasured = device is not None and device.compute.type != "cpu"
        self._rates = self._measure_products(device)
        self._machine = self._look(refuted=False)
        self._plain = Forecaster(
            self.outline, self._devices(Lesson()), routes, prompt_tokens=prompt_tokens, context=context
        )
        near = nearest(runs, budgets.weights_host, time.time(), battery=is_on_battery())
        quiet = [run for run in near if not run.beside]
        self._runs = quiet or near
        self._beside = [run for run in near if run.beside]
        self._lesson = self._learn()
        self._forecaster = self._plain.on(self._devices(self._lesson))
        speed = self._speed(self._forecaster)
        self.range = self._find_range(speed)
        """The tokens per second that are expected under the budget, and the range that they lie in."""
        self._factor = self.range.expected / speed

    def _look(self, *, refuted: bool) -> MachineNow:
        store, threads = self._settings.store.path, self._settings.compute.threads
        timings = reference.timings_here(existing(store), threads, refuted=refuted)
        own = self._rates
        factor = 1.0 if own is None else product_factor(self.outline.formats, own, timings.kept.timings, self._device)
        return MachineNow(timings, self._drives.models, self._drives.measured, factor)

    def _measure_products(self, device: Device | None) -> ExactRates | None:
        """The rates of products, where those of bfloat16 weights on the cores do not tell them; else None."""
        if self._unmeasured:
            assert device is not None
            return measure_exact(device.compute)
        return measure_exact() if LOSSLESS in self.outline.formats else None

    def _devices(self, lesson: Lesson) -> Devices:
        return self._machine.devices(lesson, experts=bool(self.outline.layers))

    def _learn(self) -> Lesson:
        """The lesson of the runs. Rates that they refute are measured anew."""
        if not self._runs:
            return Lesson()
        try:
            arrangement = self.arrange(self._runs[-1].budget)
        except BudgetTooSmall:  # the model has other settings now
            self._runs = []
            return Lesson()
        seen, simulated = typical_token(self._runs), self._plain.token(arrangement, self._bus)
        if refutes(seen, simulated) and not self._older:
            self._machine = self._look(refuted=True)
            self._plain = self._plain.on(self._devices(Lesson()))
            simulated = self._plain.token(arrangement, self._bus)
        found = learn(seen, simulated)
        corrected = self._plain.on(self._devices(found)).token(arrangement, self._bus)
        return found._replace(rest=remaining(seen, corrected))

    @property
    def _older(self) -> bool:
        """Whether the rates were measured after the latest run."""
        return self._runs[-1].when < self._machine.timings.kept.measured.when

    def _find_range(self, speed: float) -> Span:
        """The range of the forecast under the budget, which promises ``speed`` as corrected by what the runs taught."""
        left = self._machine.left
        if not self._runs:
            return beside_others(self._range_of_rates(), left)
        runs = taught(speed * self._lesson.rest, self._runs)
        if self._runs[-1].beside or self._older:
            return either(beside_others(self._range_of_rates(), left), runs)
        return slowest_seen(beside_others(runs, left), self._beside, self.budgets.weights_host)

    def _range_of_rates(self) -> Span:
        slow, fast = spread_over(self._machine, experts=bool(self.outline.layers))
        return untaught(*(self._speed(each) for each in (self._plain.on(slow), self._plain, self._plain.on(fast))))

    def _speed(self, forecaster: Forecaster) -> float:
        return forecaster.forecast(self.arrange(self.budgets.weights_host), self._bus).tokens_per_second

    def arrange(self, weights: int) -> Arrangement:
        """With ``weights`` bytes of host memory for weights. Raises BudgetTooSmall."""
        return arrange_model(self.outline, self.budgets.with_weights(weights), self._settings, self._drives.reading)

    def at(self, weights: int) -> Forecast:
        """Under ``weights`` bytes of host memory for weights, which must be enough."""
        found = self._forecaster.forecast(self.arrange(weights), self._bus)
        return replace(found, tokens_per_second=found.tokens_per_second * self._factor)

    @property
    def speeds(self) -> MeasuredSpeeds:
        """What the forecasts rest on."""
        return MeasuredSpeeds(
            memory_bytes_per_token=self._forecaster.bytes_per_token,
            flash_bytes_per_second=self._drives.bytes_per_second,
            memory_bytes_per_second=self._plain.memory.bandwidth,
            bus_bytes_per_second=None if self._bus is None else self._bus.bandwidth,
        )

    @property
    def rests_on(self) -> RestsOn:
        """When and how well these speeds were measured, and the runs that corrected them."""
        return RestsOn(
            computing=self._machine.timings.kept.measured,
            drives=tuple(each.measured for each in self._drives.measured),
            runs=len(self._runs),
            latest_run=self._runs[-1].when if self._runs else None,
            runs_beside=bool(self._runs) and self._runs[-1].beside,
            left=self._machine.left,
        )

    @property
    def caveats(self) -> list[str]:
        """What the forecasts take for granted."""
        notes = self.rests_on.caveats()
        if self.routing == "assumed":
            notes.append(
                "which experts tokens use is assumed, as uneven and as repetitive as a small trained model's was; "
                "penstock profile MODEL --text FILE --out TRACE records it for --profile TRACE"
            )
        if self.outline.guessed:
            notes.append("nothing says how many experts a token uses; all of them are counted")
        if self._unmeasured:
            notes.append(
                "of computing on the device only products were measured: for the rest, the CPU's time is taken"
            )
        if self._context is None:
            notes.append("attention over a long context is not counted")
        else:
            notes.append("attention is taken to be exact")
        return notes


def earlier_runs(found: ModelSketch, settings: Config, device: Device | None) -> list[Run]:
    """The kept runs of the model as it is packed; none on a ``device`` or with KV in pages, which teach nothing."""
    if found.bundle is None or device is not None or settings.kv_host:
        return []
    name = run_name(found.bundle, read_manifest(found.bundle), settings)
    return runs_file.load(name, settings.compute.threads)
