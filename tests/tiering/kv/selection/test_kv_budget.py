"""Fixed budgets of KV pages: which stay, which are looked at, and how many of each layer."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import ConfigError
from penstock.tiering.kv.selection.kv_budget.budget import LEAST, Budget, parse_budget
from penstock.tiering.kv.selection.kv_budget.keeping import FIRST, H2O, KEEPING, RECENT, SNAPKV, WINDOW
from penstock.tiering.kv.selection.kv_budget.layers import distribute
from penstock.tiering.kv.selection.kv_budget.quest import top

masses = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=60)
modes = st.sampled_from([*KEEPING.values()])
budgets = st.integers(LEAST, 70)


@given(modes, masses, budgets)
def test_the_budget_is_used_and_never_exceeded(mode, scores, budget):
    assert len(mode.stay(scores, budget)) == min(budget, len(scores))


@given(modes, masses, budgets)
def test_sinks_and_the_window_stay(mode, scores, budget):
    stay = mode.stay(scores, budget)
    assert stay == sorted(set(stay))
    last = range(max(0, len(scores) - RECENT), len(scores))
    assert {*range(min(FIRST, len(scores))), *last} <= {*stay}


@given(masses, budgets)
def test_a_window_is_the_first_pages_and_the_last(scores, budget):
    if len(scores) > budget:
        assert WINDOW.stay(scores, budget) == [0, *range(len(scores) - budget + 1, len(scores))]


@given(st.sampled_from([H2O, SNAPKV]), masses, budgets)
def test_no_page_goes_that_is_heavier_than_one_that_stays_outside_of_the_window(mode, scores, budget):
    stay = mode.stay(scores, budget)
    window = max(RECENT, int(mode.recent * budget))
    chosen = [scores[place] for place in stay[FIRST:] if place < len(scores) - window]
    gone = [score for place, score in enumerate(scores) if place not in stay]
    assert min(chosen, default=9) >= max(gone, default=0)


@given(modes, st.integers(1, 60), budgets)
def test_of_equal_pages_the_newest_stay(mode, count, budget):
    stay = mode.stay([1.0] * count, budget)
    assert stay == WINDOW.stay([1.0] * count, budget)


@given(masses, budgets, st.integers(0, 5))
def test_quest_looks_at_what_it_must_and_at_the_best(scores, budget, unsummed):
    always = range(len(scores), len(scores) + unsummed)
    looked = top(scores, always, budget)
    assert len(looked) == max(unsummed, min(budget, len(scores) + unsummed))
    assert {*always} <= {*looked}
    assert looked == sorted(looked)
    chosen = [page for page in looked if page < len(scores)]
    left = [score for page, score in enumerate(scores) if page not in chosen]
    assert min((scores[page] for page in chosen), default=9) >= max(left, default=0)


@given(st.lists(masses, min_size=1, max_size=6), st.integers(0, 200))
def test_pages_of_layers_sum_up(needs, more):
    total = LEAST * len(needs) + more
    counts = distribute(needs, total, least=LEAST)
    assert sum(counts) == total
    assert min(counts) >= LEAST


@given(st.lists(masses, min_size=2, max_size=6), st.integers(0, 100))
def test_one_more_layer_gives_none_more_pages(needs, more):
    total = LEAST * len(needs) + more
    before = distribute(needs[:-1], total, least=LEAST)
    after = distribute(needs, total, least=LEAST)
    for was, now, masses_ in zip(before, after[:-1], needs[:-1], strict=True):
        assert min(now, len(masses_)) <= min(was, len(masses_)) or now <= LEAST


def test_a_layer_with_attention_spread_out_gets_more_pages():
    peaked, flat = [100.0] + [0.1] * 39, [1.0] * 40
    few, many = distribute([peaked, flat], 40, least=4)
    assert few < 10 < 30 < many


def test_budgets_are_shares_or_tokens():
    assert parse_budget("25%") == Budget(share=Fraction(1, 4))
    assert parse_budget(" 12.5 % ") == Budget(share=Fraction(1, 8))
    assert parse_budget(4096) == parse_budget("4096") == Budget(tokens=4096)
    assert parse_budget(4096).pages(10**6, 64) == 64
    assert parse_budget(4159).pages(10**6, 64) == 64
    assert parse_budget("25%").pages(10_000, 64) == 40
    assert parse_budget("1%").pages(1000, 64) == LEAST


@given(st.integers(1, 10**6), st.sampled_from([16, 64]))
def test_all_of_the_context_is_all_pages(length, page):
    assert parse_budget("100%").pages(length, page) == max(LEAST, -(-length // page))


@pytest.mark.parametrize("wrong", ["0%", "101%", "-5%", 0, -1, True, 0.25, "25 percent", "", None, 1 << 50])
def test_what_is_no_budget_is_refused(wrong):
    with pytest.raises(ConfigError, match="25%"):
        parse_budget(wrong)
