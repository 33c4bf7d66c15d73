"""What to expect of a model on this machine: whether it fits, what goes where, how fast, what more memory buys."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...kernels.machine.machine import read_available_memory
from ...tiering.errors import BudgetTooSmall
from ...tiering.planner.arrangement import MemoryBudgets, least_host
from ...tiering.policy.placement.budgets import budgets as budgets_between
from ...tiering.policy.placement.budgets import enough
from ...tiering.policy.placement.placement import with_working_memory
from ...tiering.sim.kv import Context
from ...tiering.store.bundle.manifest_file import read_manifest
from ...tiering.units import GiB, format_size
from ..config.config import Config, auto_host_memory
from ..forecasting.forecast import Forecast
from ..loading.arrangement import find_budgets
from ..loading.opening import ModelSource
from ..loading.openings.device import open_device
from ..routing.routed import RoutedTokens
from .budget_forecasts import BudgetForecasts, earlier_runs
from .flash_room import flash_free
from .kv_size import context_of, count_kv_bytes, find_kv_layers
from .report import BudgetForecast, ExactPlan, KvPlan, Plan
from .sketch import ModelSketch, deal_to_drives, sketch_model

PROMPT_TOKENS = 512
"""Length of the prompt for the time to the first token, if none is given."""


def plan(
    source: str | Path,
    config: str | Path | Config | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    prompt_tokens: int = PROMPT_TOKENS,
    context: int | None = None,
    routes: RoutedTokens | None = None,
    **overrides: Any,
) -> Plan:
    """Say whether ``source`` fits, what goes where, how fast it will be, and what more memory would buy, by simulating
    it on what this machine was measured to be. Nothing is packed. Where nothing was measured yet, that takes some
    seconds.

    ``source``, ``config`` and ``overrides`` are as for ``load``. ``prompt_tokens`` is the length of the prompt for the
    time to the first token, ``context`` the tokens whose keys and values each token looks at (None: not counted).
    ``routes`` is a routing trace of the model, else routing is assumed.

    A model that does not fit is an answer, not an error. Raises PenstockError: ConfigError, CheckpointError,
    BundleError, DeviceUnavailable, DeviceFull, and TraceError where ``routes`` are of another model.
    """
    settings = config.override(**overrides) if isinstance(config, Config) else Config.load(config, **overrides)
    device = open_device(settings)
    named = ModelSource(model=str(source), revision=revision, trust_remote_code=trust_remote_code)
    found = sketch_model(named, settings, device)
    outline = found.outline()
    if routes is not None:
        routes.check_model({layer.path: layer.experts for layer in outline.layers}, str(source))
    budgets = find_budgets(outline, settings, device, found.model.config)
    try:
        least = least_host(outline, budgets)
    except BudgetTooSmall as error:  # of the device's memory: no host memory would do
        return Plan(fits=False, notes=(str(error),), model_bytes=outline.total_bytes, prompt_tokens=prompt_tokens)
    places = [settings.store.path, *settings.store.stripes]
    # A budget that is too small is planned for all the same: to say what the least would do.
    measured = budgets.with_weights(max(budgets.weights_host, least))
    runs = earlier_runs(found, settings, device)
    found, drives = deal_to_drives(found, measured, places, settings.io, runs)
    kv, load = _plan_kv(found, settings, context)
    free = flash_free(places, settings.flash_limit, None if found.bundle else drives.shares)
    forecasts = BudgetForecasts(found, drives, settings, measured, device, routes, prompt_tokens, load, runs)
    return _report(forecasts, budgets, least, kv, free)


def _report(forecasts: BudgetForecasts, budgets: MemoryBudgets, least: int, kv: KvPlan | None, free: int) -> Plan:
    """The plan, where ``least`` bytes of host memory for weights would do, and the store has ``free`` bytes."""
    outline, found = forecasts.outline, forecasts.found
    pages, budget = budgets.kv_host, budgets.host - budgets.kv_host
    wanted = budgets_between(least, with_working_memory(outline.total_bytes), budget)
    curve = {each: forecasts.at(each) for each in wanted}
    needed = 0 if found.bundle else found.layout.total_bytes
    notes = []
    if kv is not None and kv.total is None:
        notes.append("what keys and values of this model take cannot be told without its weights; they are not counted")
    if needed > free:
        notes.append(f"packing needs {format_size(needed)} on flash, there is room for {format_size(free)}")
    refusal = Plan(
        fits=False,
        notes=tuple(notes),
        model_bytes=found.layout.total_bytes,
        prompt_tokens=forecasts.prompt_tokens,
        minimum_host_memory=least + pages,
        recommended_host_memory=_recommend(curve),
        host_memory=budgets.host,
        device_memory=budgets.weights_device or 0,
        flash_needed=needed,
        flash_free=free,
        kv=kv,
        curve=tuple(_rows(curve, pages)),
        routing=forecasts.routing,
    )
    try:
        arrangement = forecasts.arrange(budget)
    except BudgetTooSmall as error:
        return replace(refusal, notes=(*notes, str(error)))
    return replace(
        refusal,
        fits=needed <= free,
        arrangement=arrangement,
        forecast=curve[budget],
        kv=kv if kv is None or kv.total is None else replace(kv, flash=curve[budget].kv_flash_bytes_per_token),
        range=forecasts.range,
        speeds=forecasts.speeds,
        rests_on=forecasts.rests_on,
        exact=_plan_exact(found, curve[budget]),
        notes=(*notes, *forecasts.caveats),
    )


def _plan_exact(found: ModelSketch, forecast: Forecast) -> ExactPlan | None:
    """The choice between exact formats, by ``forecast`` of the one that is planned."""
    if found.exact is None:
        return None
    packed = None if found.bundle is None else read_manifest(found.bundle).codec.partition(",")[0]
    exact = found.exact.corrected(packed or found.exact.format, forecast.tokens_per_second)
    return ExactPlan(exact.format, exact.why, packed, exact.tokens_per_second)


def _plan_kv(found: ModelSketch, settings: Config, context: int | None) -> tuple[KvPlan | None, Context | None]:
    """KV of ``context`` tokens, and what a token has to do with it; None for what is not asked for or not known."""
    if context is None:
        return None, None
    pages, layers = settings.kv_host or 0, find_kv_layers(found.model)
    if layers is None:
        return KvPlan(context, pages), None
    per_token, total = count_kv_bytes(layers, context, settings.kv.format)
    return KvPlan(context, pages, total, per_token), context_of(layers, context, settings)


def _recommend(curve: Mapping[int, Forecast]) -> int | None:
    """The least budget that is nearly as fast as all the memory that this machine has to spare; None where that is too
    little to run with."""
    room = auto_host_memory(read_available_memory(), max(curve))
    points = [(budget, found.tokens_per_second) for budget, found in curve.items() if budget <= room]
    return enough(points) if points else None


def _rows(curve: Mapping[int, Forecast], pages: int) -> list[BudgetForecast]:
    """The rows of the curve, with ``pages`` bytes for KV added to each budget."""
    rows: list[BudgetForecast] = []
    for budget, found in curve.items():
        gained = None
        if rows:
            more = found.tokens_per_second - rows[-1].forecast.tokens_per_second
            gained = more * GiB / (budget + pages - rows[-1].host_memory)
        rows.append(BudgetForecast(budget + pages, found, gained))
    return rows
