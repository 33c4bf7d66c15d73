"""A finished run teaches the next plan of its model."""

from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock import Plan
from penstock.runtime.loading.run_name import run_name
from penstock.runtime.machine import runs_file
from penstock.runtime.planning import reference
from penstock.tiering.policy.lessons import PerToken, Run
from penstock.tiering.store.bundle.manifest_file import read_manifest
from penstock.tiering.units import KiB
from tests.support.timings import MEASURED, NOW

pytestmark = pytest.mark.usefixtures("elsewhere", "quick")

BUDGET = 400 * KiB
TOKENS = 40


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"store": tmp_path / "store", "host_memory": BUDGET}


def run(folder: Path, settings: dict[str, Any], tokens: int = TOKENS, **more: Any) -> Path:
    """Decode so many tokens one by one; the bundle."""
    with penstock.load(folder, **settings, **more) as model, torch.inference_mode():
        out = model(torch.arange(4)[None], use_cache=True)
        for token in range(tokens):
            out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        return penstock.handle(model).bundle


def lesson(bundle: Path, settings: dict[str, Any], seconds: float, **how: Any) -> None:
    """Keep a run of ``bundle`` with so many seconds for a token, a tenth of them waiting for the drive."""
    name = run_name(bundle, read_manifest(bundle), penstock.Config.load(**settings))
    token = PerToken(seconds, seconds / 10, seconds / 2, 0.0)
    made = Run(MEASURED.when + 1, BUDGET, token, 0.9 * seconds, 1.25 * seconds, False)
    runs_file.keep(name, "auto", made._replace(**how))


def test_a_run_keeps_what_it_took(checkpoint: Path, settings: dict[str, Any]) -> None:
    bundle = run(checkpoint, settings)
    name = run_name(bundle, read_manifest(bundle), penstock.Config.load(**settings))
    (kept,) = runs_file.load(name, "auto")
    assert kept.budget == BUDGET
    assert kept.token.bytes_read > 0
    assert 0 < kept.fast <= kept.token.seconds <= kept.slow
    found = penstock.plan(checkpoint, **settings)
    assert found.rests_on is not None
    assert (found.rests_on.runs, found.rests_on.latest_run) == (1, kept.when)
    assert found.tokens_per_second is not None
    unsettled = penstock.plan(checkpoint, **settings | {"experts_eviction": "lru"})
    assert unsettled.rests_on is not None
    assert unsettled.rests_on.runs == 0, "with other settings the run says nothing"


@pytest.mark.parametrize("how", ["few tokens", "KV in pages", "wrapped"])
def test_some_runs_teach_nothing(
    how: str, checkpoint: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_file, "keep", lambda *_: pytest.fail("it teaches"))
    if how == "wrapped":
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
        with penstock.wrap(plain, **settings) as model, torch.inference_mode():
            for _ in range(TOKENS):
                model(torch.tensor([[1]]))
    elif how == "few tokens":
        run(checkpoint, settings, tokens=16)
    else:
        run(checkpoint, settings | {"host_memory": "3MiB"}, kv_host_memory="2MiB")


@pytest.fixture
def planned(checkpoint: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, float]:
    """A bundle, and the seconds of a token that rates alone promise."""
    monkeypatch.setattr("time.time", lambda: MEASURED.when + 60)
    bundle = run(checkpoint, settings, tokens=1)
    found = penstock.plan(checkpoint, **settings)
    assert found.tokens_per_second is not None
    return bundle, 1 / found.tokens_per_second


def test_the_next_plan_says_what_the_run_took(planned: tuple[Path, float], settings: dict[str, Any]) -> None:
    bundle, seconds = planned
    plain = penstock.plan(bundle, **settings)
    lesson(bundle, settings, 2 * seconds)
    found = penstock.plan(bundle, **settings)
    assert found.tokens_per_second == pytest.approx(0.5 / seconds)
    assert found.range is not None
    assert (found.range.least, found.range.most) == pytest.approx((0.38 / seconds, 0.5 / 0.9 * 1.05 / seconds))
    (own,) = (row for row in found.curve if row.host_memory == BUDGET)
    assert own.forecast.tokens_per_second == found.tokens_per_second
    assert found.curve[-1].forecast.tokens_per_second < plain.curve[-1].forecast.tokens_per_second
    assert found.to_dict()["rests_on"]["runs"] == 1


@pytest.mark.parametrize("how", [{"beside": True}, {"when": MEASURED.when - 1}])
def test_runs_that_are_not_certain_count_half(
    how: dict[str, Any], planned: tuple[Path, float], settings: dict[str, Any]
) -> None:
    bundle, seconds = planned
    rates = penstock.plan(bundle, **settings).range
    assert rates is not None
    lesson(bundle, settings, 4 * seconds, **how)
    found = penstock.plan(bundle, **settings)
    assert found.tokens_per_second == pytest.approx(0.5 / seconds)
    assert found.range is not None
    assert found.range.least < 0.25 / seconds
    assert found.range.most == rates.most, "where the rates hold after all"


def test_a_run_that_refutes_the_rates_has_them_measured_anew_once(
    planned: tuple[Path, float], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, seconds = planned
    lesson(bundle, settings, seconds / 3)
    kept, asked = NOW, []

    def timings_here(*_: object, refuted: bool = False) -> reference.TimingsNow:
        nonlocal kept
        asked.append(refuted)
        if refuted:
            measured = kept.kept.measured.__class__(MEASURED.when + 50, MEASURED.when + 50, 0.1, (), 0.0, 0.0)
            kept = kept._replace(kept=kept.kept.model_copy(update={"measured": measured}))
        return kept

    monkeypatch.setattr(reference, "timings_here", timings_here)
    penstock.plan(bundle, **settings)
    assert asked == [False, True]
    penstock.plan(bundle, **settings)
    assert asked == [False, True, False]


def test_other_programs_now_lower_the_lower_end(
    planned: tuple[Path, float], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = planned
    before = penstock.plan(bundle, **settings)
    monkeypatch.setattr(reference, "timings_here", lambda *_, **__: NOW._replace(left=0.5))
    after = penstock.plan(bundle, **settings)
    assert before.range is not None
    assert after.range is not None
    assert after.range.least == pytest.approx(before.range.least / 2)
    assert after.range.expected == before.range.expected
    assert any("leave about 50%" in note for note in after.notes)


def test_text_and_json_say_what_it_rests_on(planned: tuple[Path, float], settings: dict[str, Any], run, ask) -> None:
    bundle, seconds = planned
    lesson(bundle, settings, 2 * seconds)
    options = ("--store", settings["store"], "--host-memory", BUDGET)
    said = ask("plan", bundle, *options)
    assert said["tokens_per_second_from"] < said["tokens_per_second"] < said["tokens_per_second_to"]
    assert said["rests_on"]["computing"]["when"] == MEASURED.when
    out = run("plan", bundle, *options)[1]
    assert "One run of this model corrected that" in out
    assert "repeats within 10%" in out
    assert f"({said['tokens_per_second_from']:.2f} to {said['tokens_per_second_to']:.2f})" in out


def test_a_plan_is_a_value() -> None:
    empty = Plan(fits=False, notes=(), model_bytes=0, prompt_tokens=1)
    assert (empty.tokens_per_second_from, empty.tokens_per_second_to) == (None, None)
