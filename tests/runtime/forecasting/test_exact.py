"""The choice between the exact formats, on devices whose numbers make the faster one known beforehand."""

from dataclasses import replace

import pytest
import torch

from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.forecasting.exact import AS_IS, LOSSLESS, CoresWithRate, ExactChoice, ExactWay, choose_exact
from penstock.runtime.forecasting.forecast import Devices
from penstock.runtime.loading.outline import outline_model
from penstock.runtime.packing.arrange.arrange import ENCODED, estimate
from penstock.runtime.packing.arrange.formats import Rules
from penstock.tiering.planner.arrangement import MemoryBudgets, Outline, arrange_memory, least_host
from penstock.tiering.policy.drive_reading import UNMEASURED
from penstock.tiering.policy.placement.placement import with_working_memory
from penstock.tiering.sim.devices import Bus, Drive
from tests.support.timings import TIMINGS
from tests.support.tiny_models import tiny_config

LARGER = {
    "llama": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4},
    "qwen3_moe": {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts": 16, "num_hidden_layers": 3},
}
"""Blocks of so many pages that these waste little."""


def outlines(kind: str) -> list[Outline]:
    """A model as it is, and lossless."""
    model = build_meta_model(tiny_config(kind, **LARGER[kind]), torch.bfloat16)
    layouts = [estimate(model, describe(model), Rules(name), {}) for name in (AS_IS, LOSSLESS)]
    return [outline_model(model, layout) for layout in layouts]


def choice(
    kind: str,
    budget: int | None = None,
    *,
    drive: float = 1e9,
    decoding: float = 1.0,
    device: int | None = None,
    bus: float = 1e9,
) -> ExactChoice:
    """With ``budget`` bytes of host memory, or enough for either. Lossless products read ``decoding`` times as many
    bytes per second. ``device`` bytes of a device's memory are at the end of ``bus``."""
    ways = []
    for outline, factor in zip(outlines(kind), (1.0, decoding), strict=True):
        host = with_working_memory(outline.total_bytes) + outline.scratch if budget is None else budget
        budgets = MemoryBudgets(host, device=device)
        fits = host >= least_host(outline, budgets)
        arrangement = arrange_memory(outline, budgets, UNMEASURED, eviction="auto", guess=True) if fits else None
        devices = Devices([Drive(drive)], CoresWithRate(TIMINGS, factor))
        ways.append(ExactWay(outline, arrangement, devices, None if device is None else Bus(bus)))
    return choose_exact(*ways)


def half(kind: str) -> int:
    """Bytes of half of the weights of a model."""
    return outlines(kind)[0].total_bytes // 2


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_slow_drive_is_relieved(kind: str) -> None:
    found = choice(kind, half(kind), drive=1e8, decoding=0.3)
    assert found.format == LOSSLESS
    assert "limited by flash" in found.why
    assert found.tokens_per_second[LOSSLESS] > found.tokens_per_second[AS_IS]


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_drive_that_outruns_decoding_is_not(kind: str) -> None:
    found = choice(kind, half(kind), drive=1e10, decoding=0.1)
    assert found.format == AS_IS
    assert "lossless is limited by memory" in found.why


@pytest.mark.parametrize(("decoding", "format_"), [(1.0, LOSSLESS), (ENCODED, AS_IS), (0.5, AS_IS)])
def test_in_memory_the_rate_of_products_decides(decoding: float, format_: str) -> None:
    """Lossless products read two thirds of the bytes: as fast as that, nothing is gained and packing takes longer."""
    found = choice("llama", decoding=decoding)
    assert found.format == format_
    gain = found.tokens_per_second[LOSSLESS] / found.tokens_per_second[AS_IS]
    assert gain == pytest.approx(decoding / ENCODED, rel=0.05)


def test_a_model_that_fits_into_memory_only_when_it_is_smaller_is_made_smaller() -> None:
    """Nothing is streamed then, though products take twice as long."""
    _, lossless = outlines("llama")
    enough = with_working_memory(lossless.total_bytes) + lossless.scratch
    assert choice("llama", enough, drive=1e8, decoding=0.5).format == LOSSLESS
    assert choice("llama", decoding=0.5).format == AS_IS


def test_what_does_not_fit_is_not_taken() -> None:
    least = [least_host(outline, MemoryBudgets(0)) for outline in outlines("qwen3_moe")]
    assert least[0] != least[1]
    found = choice("qwen3_moe", min(least))
    assert found.format == (AS_IS if least[0] < least[1] else LOSSLESS)
    assert list(found.tokens_per_second.values()).count(None) == 1
    neither = choice("qwen3_moe", 1)
    assert (neither.format, neither.tokens_per_second) == (AS_IS, {AS_IS: None, LOSSLESS: None})


def test_a_slow_bus_to_a_device_is_relieved() -> None:
    small = half("qwen3_moe")
    slow = choice("qwen3_moe", device=small, bus=1e8, decoding=0.3)
    assert slow.format == LOSSLESS
    assert "limited by bus" in slow.why
    assert choice("qwen3_moe", device=small, bus=1e12, decoding=0.3).format == AS_IS


def test_a_forecast_that_knows_more_moves_both() -> None:
    found = ExactChoice(AS_IS, "", {AS_IS: 10.0, LOSSLESS: 8.0})
    assert found.corrected(AS_IS, 5.0).tokens_per_second == {AS_IS: 5.0, LOSSLESS: 4.0}
    assert found.corrected(LOSSLESS, 16.0).tokens_per_second == {AS_IS: 20.0, LOSSLESS: 16.0}
    unknown = replace(found, tokens_per_second={AS_IS: 10.0, LOSSLESS: None})
    assert unknown.corrected(AS_IS, 5.0).tokens_per_second == {AS_IS: 5.0, LOSSLESS: None}
    assert unknown.corrected(LOSSLESS, 5.0) == unknown
