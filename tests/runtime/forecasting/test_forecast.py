"""Forecasts for models without weights, on devices whose numbers make the result known beforehand."""

from dataclasses import replace

import pytest
import torch

from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.forecasting.assumed import assumed_routes
from penstock.runtime.forecasting.forecast import PRECISION, Devices, Forecast, Forecaster, count_decoded, count_routed
from penstock.runtime.loading.outline import outline_model
from penstock.runtime.machine.timings import Timings
from penstock.runtime.routing.routes import Routes
from penstock.tiering.errors import DeviceModelError
from penstock.tiering.planner.arrangement import (
    Arrangement,
    ExpertLayer,
    MemoryBudgets,
    Outline,
    arrange_memory,
    least_host,
)
from penstock.tiering.policy.drive_reading import UNMEASURED
from penstock.tiering.policy.placement.placement import with_working_memory
from penstock.tiering.sim.devices import Drive
from penstock.tiering.units import KiB
from tests.support.routes import made_up
from tests.support.timings import TIMINGS
from tests.support.tiny_models import tiny_config

PROMPT = 200
"""Long enough that every expert is used."""


def outline(name: str) -> Outline:
    model = build_meta_model(tiny_config(name), torch.float32)
    return outline_model(model, describe(model))


def forecast(
    model: Outline,
    budget: int | None = None,
    *,
    timings: Timings = TIMINGS,
    drive: float = 1e9,
    routes: Routes | None = None,
    guess: bool = True,
    precision: float = PRECISION,
) -> Forecast:
    """Of ``model`` with ``budget`` bytes, or all in memory."""
    if model.layers and routes is None:
        routes = assumed_routes(model.layers, count_routed(model.layers, PROMPT))
    devices = Devices([Drive(drive)], timings)
    made = Forecaster(model, devices, routes, prompt_tokens=PROMPT, precision=precision)
    return made.forecast(arranged(model, budget or with_working_memory(model.total_bytes), guess=guess))


def arranged(model: Outline, budget: int, *, guess: bool = True) -> Arrangement:
    return arrange_memory(model, MemoryBudgets(budget), UNMEASURED, eviction="auto", guess=guess)


def test_all_in_memory_a_token_takes_its_weights_and_what_layers_and_tokens_compute_besides():
    model = outline("llama")
    used = Forecaster(model, Devices([Drive(1e9)], TIMINGS), None, prompt_tokens=1).bytes_per_token
    assert used < model.total_bytes, "an embedding gives a row"
    besides = TIMINGS.model_copy(update={"dense_layer": 2e-3, "token": 5e-3})
    got = forecast(model, timings=besides)
    assert 1 / got.tokens_per_second == pytest.approx(used / 1e10 + 2 * 2e-3 + 5e-3)
    assert (got.flash_bytes_per_token, got.hit_ratio) == (0, 1.0)


def test_what_is_busy_longest_is_the_limit():
    model = outline("qwen3_moe")
    assert forecast(model, 400 * KiB, drive=1e7).limited_by == "flash"
    assert forecast(model).limited_by == "memory"
    slow = TIMINGS.model_copy(update={"layer_warm": 1e-2, "layer_cold": 1e-2})
    assert forecast(model, 400 * KiB, timings=slow).limited_by == "compute"


def test_a_dense_model_reads_what_is_streamed_at_every_token():
    model = outline("llama")
    budget = least_host(model, MemoryBudgets(0)) + 40 * KiB
    got = forecast(model, budget, drive=1e7)
    streamed = arranged(model, budget).host.streamed_bytes
    assert streamed > 0
    assert got.flash_bytes_per_token == pytest.approx(streamed, rel=0.05)
    assert got.tokens_per_second == pytest.approx(1e7 / streamed, rel=0.1)


def test_a_prompt_reads_every_expert_once():
    model = outline("qwen3_moe")
    placement = arranged(model, 400 * KiB).host
    least = (placement.expert_total_bytes + placement.streamed_bytes) / 1e6
    assert forecast(model, 400 * KiB, drive=1e6).time_to_first_token_s == pytest.approx(least, rel=0.1)


def test_a_short_trace_begins_again():
    model = outline("qwen3_moe")
    short = made_up(tokens=3)
    longer = Routes(
        short.model_type,
        short.text,
        tuple(replace(layer, chosen=layer.chosen[[0, 1, 2] * 100]) for layer in short.layers),
        (300,),
        (300,),
    )
    assert forecast(model, 400 * KiB, routes=short) == forecast(model, 400 * KiB, routes=longer)


def test_guessing_is_simulated_where_it_is_on():
    """While a layer computes, the drive reads what the next one will want."""
    model = outline("qwen3_moe")
    slow = TIMINGS.model_copy(update={"layer_warm": 1e-2, "layer_cold": 1e-2})
    off, on = (forecast(model, 400 * KiB, timings=slow, drive=1e7, guess=guess) for guess in (False, True))
    assert on.hit_ratio > off.hit_ratio, "what is guessed and comes in time is found in memory"
    assert on.flash_bytes_per_token > off.flash_bytes_per_token, "a quarter of it is wrong"
    sure = forecast(model, 400 * KiB, timings=slow, drive=1e7, precision=1.0)
    assert sure.flash_bytes_per_token < on.flash_bytes_per_token, "nothing is read in vain"
    assert forecast(replace(model, foreseen=False), 400 * KiB, timings=slow, drive=1e7) == off
    assert forecast(model, 400 * KiB, timings=slow, drive=1e7) == on, "equal arguments give equal forecasts"


def test_the_more_layers_route_the_fewer_tokens_do():
    layers = [ExpertLayer(str(n), 8, 2, 1) for n in range(100)]
    counts = [count_decoded(layers[:n]) for n in range(101)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[48], counts[100]) == (24, 10, 8)
    assert count_routed(layers, 5) == 5 + 2 * 8


def test_a_drive_that_cannot_be_is_named():
    with pytest.raises(DeviceModelError, match=r"Drive\.bandwidth"):
        forecast(outline("llama"), drive=0.0)
