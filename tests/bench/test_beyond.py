"""The models and machines of the report on what does not fit here, and what it says of them."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from beyond import ABOVE, replace_tables
from big_models import MODELS, BigModel
from cases import Case, Figure, limit_of, outline_of, simulate_case
from machines import MACHINES
from report import Table

from penstock.runtime.forecasting.forecast import Forecaster
from penstock.tiering.units import GiB

LAPTOP = MACHINES[0]
STEP = 1.01
"""What less memory may be faster by: a simulated run is short, and reads a few experts more or less."""


@cache
def with_memory(name: str, gib: int) -> Figure:
    return simulate_case(Case(MODELS[name], replace(LAPTOP, memory=gib * GiB)))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_described_models_have_the_published_sizes(model: BigModel):
    parameters = sum(weight.numel() for weight in model.skeleton().parameters())
    assert parameters == pytest.approx(model.parameters * 1e9, rel=0.01)
    outline = outline_of(model, False, 1)
    assert outline.total_bytes == pytest.approx(2 * parameters, rel=0.01), "bfloat16, and little besides"
    assert not outline.guessed, "its routers say how many experts a token uses"
    used = Forecaster(outline, LAPTOP.devices("bfloat16"), None, prompt_tokens=1).bytes_per_token
    assert used == pytest.approx(2e9 * model.active, rel=0.02)


@pytest.mark.parametrize(("name", "size"), [("gpt-oss-120b", 60.8 * GiB), ("DeepSeek-V3", 673e9)])
def test_packed_models_take_the_bytes_that_are_published(name, size):
    """The model card of gpt-oss has 60.8 GiB. Of 671 B parameters 1.9 B are bfloat16, the others a byte each."""
    outline = outline_of(MODELS[name], True, 1)
    assert outline.total_bytes == pytest.approx(size, rel=0.01)
    plain = outline_of(MODELS[name], False, 1)
    assert [block.id for block in outline.blocks] == [block.id for block in plain.blocks]


def test_two_drives_have_half_of_the_blocks_each():
    blocks = outline_of(MODELS["Qwen3-30B-A3B"], False, 2).blocks
    halves = [sum(block.length for block in blocks if block.drive == drive) for drive in (0, 1)]
    assert halves[0] == pytest.approx(halves[1], rel=0.01)


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-32B"])
def test_more_memory_is_never_slower(name):
    speeds = [with_memory(name, gib).forecast.tokens_per_second for gib in (16, 32, 48)]
    assert all(more * STEP >= less for less, more in pairwise(speeds))
    assert speeds[-1] > 1.2 * speeds[0]


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "Qwen3-32B"])
def test_no_figure_is_above_what_bytes_allow(name):
    for gib in (16, 32, 48):
        figure = with_memory(name, gib)
        assert figure.of_limit < ABOVE
        assert figure.of_limit > 0.5 or figure.forecast.limited_by != "flash", "much less than the drive allows"


def test_a_drive_that_is_twice_as_fast_helps_where_it_is_the_limit():
    faster = simulate_case(Case(MODELS["Qwen3-32B"], replace(LAPTOP, drive_speed=2 * LAPTOP.drive_speed)))
    slower = with_memory("Qwen3-32B", 16)
    assert faster.forecast.tokens_per_second > 1.6 * slower.forecast.tokens_per_second


def test_the_limit_is_the_slower_of_drives_and_memory():
    two = replace(LAPTOP, drives=2)
    assert limit_of(24_000_000_000, 1, LAPTOP) == pytest.approx(6 / 24)
    assert limit_of(24_000_000_000, 1, two) == pytest.approx(12 / 24)
    assert limit_of(1, 67_200_000_000, LAPTOP) == pytest.approx(1)


def test_only_what_is_between_the_marks_is_replaced():
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    once = replace_tables(text, {"a": [Table("new", ("x",), [("1",)])]})
    assert once.startswith("before\n<!-- a -->\n")
    assert once.endswith("<!-- /a -->\nafter\n")
    assert "old" not in once
    assert "| 1 |" in once
    assert replace_tables(once, {"a": [Table("new", ("x",), [("1",)])]}) == once
    with pytest.raises(SystemExit, match="<!-- b -->"):
        replace_tables(text, {"b": []})
