"""Masses of pages: what is certainly omitted, and which pages that needs, against plain arithmetic."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.kv import certify
from penstock.kernels.kv.certify import CompiledPageMasses, PageMasses, make_page_masses, sum_page_masses
from penstock.kernels.kv.summaries.base import Bounds
from penstock.kernels.native import COMPILED, RUNS, find_level
from penstock.tiering.kv.selection.certificate import Certificate, select

native = pytest.mark.skipif(COMPILED is None, reason="no compiler at installation")
worlds = st.tuples(
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([0.01, 1.0, 4.0]),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.integers(0, 1 << 20),
)
"""Pages, rows, standard deviation of log-masses, how far bounds are from them at most, seed."""


def world(pages: int, rows: int, spread: float, slack: float, seed: int) -> tuple[Bounds, torch.Tensor]:
    """Bounds, and the log-masses that they bound."""
    generator = torch.Generator().manual_seed(seed)
    masses = 50 + spread * torch.randn(rows, 1, pages, generator=generator)
    below, above = slack * torch.rand(2, rows, 1, pages, generator=generator)
    return Bounds(masses - below, masses + above), masses


def run(known: PageMasses, masses: torch.Tensor, epsilon: float) -> Certificate:
    choice = select(known, epsilon=epsilon)
    try:
        while True:
            pages = [page for run in next(choice) for page in run.pages]
            known.add(pages, masses[..., pages])
    except StopIteration as end:
        certificate: Certificate = end.value
        return certificate


def certified(bounds: Bounds, masses: torch.Tensor, epsilon: float, *, outside: float | None = None) -> Certificate:
    known = make_page_masses(bounds)
    if outside is not None:
        known.add_outside(torch.full((*masses.shape[:2], 1), outside))
    return run(known, masses, epsilon)


def fewest(upper: list[float], own: list[float], epsilon: float, read: float = 0.0) -> set[int]:
    """Pages in the order of their upper bounds until what is left is little beside what these then have."""
    order = sorted(range(len(upper)), key=lambda page: -upper[page])
    for count in range(len(order) + 1):
        left = sum(math.exp(upper[page]) for page in order[count:])
        there = read + sum(math.exp(own[page]) for page in order[:count])
        if left <= epsilon / (1 - epsilon) * there:
            return set(order[:count])
    raise AssertionError("nothing is left when all are read")


@settings(max_examples=150, deadline=None)
@given(worlds, st.sampled_from([0.3, 1e-2, 1e-4]), st.none() | st.sampled_from([40.0, 60.0]))
def test_the_certificate_holds(case: tuple[int, int, float, float, int], epsilon: float, outside: float | None) -> None:
    bounds, masses = world(*case)
    certificate = certified(bounds, masses, epsilon, outside=outside)
    assert certificate.most <= epsilon
    assert certificate.rounds <= 2
    masses = masses.double()
    whole = masses.exp().sum(-1)[:, 0] + (math.exp(outside) if outside else 0)
    unread = [page for page in range(masses.shape[-1]) if page not in certificate.pages]
    true = masses[..., unread].exp().sum(-1)[:, 0] / whole
    assert bool((true <= torch.tensor(certificate.omitted, dtype=torch.float64) * (1 + 1e-9)).all())


@settings(max_examples=150, deadline=None)
@given(worlds, st.sampled_from([0.3, 1e-2, 1e-4]), st.booleans(), st.none() | st.integers(0, 11))
def test_needed_pages_are_the_fewest_in_order(
    case: tuple[int, int, float, float, int], epsilon: float, hopeful: bool, first: int | None
) -> None:
    """Each row asks for its own; of those read already none is asked for again."""
    bounds, masses = world(*case)
    known = make_page_masses(bounds)
    left = list(range(masses.shape[-1]))
    if first in left:
        known.add([first], masses[..., [first]])
        left.remove(first)
    wanted: set[int] = set()
    for row in range(len(masses)):
        upper, lower = (bound[row, 0, left].tolist() for bound in (bounds.upper, bounds.lower))
        read = math.exp(masses[row, 0, first]) if first is not None and first < masses.shape[-1] else 0.0
        wanted |= {left[page] for page in fewest(upper, upper if hopeful else lower, epsilon, read)}
    assert known.needed(epsilon, hopeful=hopeful) == sorted(wanted)


@settings(max_examples=60, deadline=None)
@given(worlds, st.booleans())
def test_less_may_be_omitted_with_more_pages(case: tuple[int, int, float, float, int], hopeful: bool) -> None:
    known = make_page_masses(world(*case)[0])
    found = [set(known.needed(epsilon, hopeful=hopeful)) for epsilon in (0.5, 0.1, 1e-2, 1e-4, 1e-8)]
    assert all(few <= many for few, many in pairwise(found))


def test_a_page_of_which_nothing_is_known_is_read() -> None:
    upper = torch.tensor([[[0.0, math.inf, 0.0, -50.0]]])
    lower = torch.tensor([[[0.0, -math.inf, 0.0, -50.0]]])
    masses = torch.tensor([[[0.0, -90.0, 0.0, -50.0]]])
    assert certified(Bounds(lower, upper), masses, 1e-3).pages == (0, 1, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_everything_is_read_where_masses_are_no_numbers(bad: float) -> None:
    upper = torch.tensor([[[9.0, 0.0, -50.0]]])
    masses = torch.tensor([[[bad, 0.0, -50.0]]])
    certificate = certified(Bounds(upper, upper), masses, 1e-3)
    assert certificate.pages == (0, 1, 2)
    assert certificate.omitted == (0.0,)


def test_before_anything_is_read_all_may_be_omitted() -> None:
    bounds, _ = world(4, 2, 1.0, 0.1, 0)
    assert make_page_masses(bounds).omitted() == [1.0, 1.0]


def test_masses_may_differ_by_hundreds_of_orders_of_magnitude() -> None:
    masses = torch.tensor([[[-5000.0, 5000.0, 4000.0]]])
    certificate = certified(Bounds(masses, masses), masses, 1e-9)
    assert certificate.pages == (1,)
    assert certificate.most == pytest.approx(0.0, abs=1e-300)


wide_worlds = st.tuples(
    st.integers(1, 70),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.01, 4.0, 300.0]),
    st.sampled_from([0.0, 0.1, 2.0, 200.0]),
    st.integers(0, 1 << 20),
)


@native
@settings(max_examples=200, deadline=None)
@given(
    case=wide_worlds,
    epsilon=st.sampled_from([0.3, 1e-2, 1e-4]),
    unknown=st.sets(st.integers(0, 69), max_size=3),
    outside=st.none() | st.sampled_from([-300.0, 40.0, math.inf, math.nan]),
)
def test_compiled_masses_are_those_of_the_reference(
    case: tuple[int, int, float, float, int], epsilon: float, unknown: set[int], outside: float | None
) -> None:
    """Round by round: what is asked for, what is omitted, whose values are worth reading; equal pages keep their order,
    and some have no bounds."""
    bounds, masses = world(*case)
    for page in unknown:
        bounds.upper[..., page : page + 1], bounds.lower[..., page : page + 1] = math.inf, -math.inf
    both = [PageMasses(bounds), CompiledPageMasses(bounds)]
    for known in both:
        if outside is not None:
            known.add_outside(torch.full((len(masses), 1, 1), outside))
        for hopeful in (True, False):
            assert known.needed(epsilon, hopeful=hopeful) == both[0].needed(epsilon, hopeful=hopeful)
    certificates = [run(known, masses, epsilon) for known in both]
    assert certificates[1].pages == certificates[0].pages
    assert certificates[1].rounds == certificates[0].rounds
    assert certificates[1].omitted == pytest.approx(certificates[0].omitted, rel=1e-9, abs=1e-300)
    if certificates[0].pages:
        (pages, omitted), (others, also) = (known.worth_reading(epsilon) for known in both)
        assert pages == others
        assert omitted == pytest.approx(also, rel=1e-9, abs=1e-300)


def test_values_are_worth_reading_of_the_heaviest_pages() -> None:
    """Of four that were read two may go, one of them counts for one row alone; page 4 has no bounds."""
    masses = torch.tensor([[[0.5, 1e-4, 0.4, 6e-4, 0.099]], [[0.9, 1e-9, 1e-5, 1e-9, 0.1]]]).log()
    known = make_page_masses(Bounds(masses[..., :4] - 1, masses[..., :4] + 1))
    known.add([0, 2, 4], masses[..., [0, 2, 4]])
    known.add([1, 3], masses[..., [1, 3]])
    assert known.worth_reading(1e-3) == ([0, 2, 4], pytest.approx(7e-4, rel=1e-2))
    assert known.worth_reading(2e-4)[0] == [0, 2, 3, 4]
    assert known.worth_reading(0.9)[0] != [], "something is left for the softmax"


def test_what_was_not_read_counts_before_values_are_left_out() -> None:
    masses = torch.tensor([[[0.9, 6e-4, 6e-4]]]).log()
    known = make_page_masses(Bounds(masses, masses))
    known.add([0, 1], masses[..., :2])
    assert known.worth_reading(1e-3)[0] == [0, 1]
    assert known.worth_reading(2e-3)[0] == [0]


@pytest.mark.parametrize("level", [None, *RUNS])
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 150)),
    tokens=st.sampled_from([16, 64, 24]),
    spread=st.sampled_from([0.0, 1.0, 60.0, 1e4]),
    strange=st.lists(st.tuples(st.integers(0, 149), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=2),
    seed=st.integers(0, 1 << 20),
)
def test_masses_of_pages_are_those_of_their_scores(
    level: str | None,
    shape: tuple[int, int, int],
    tokens: int,
    spread: float,
    strange: list[tuple[int, float]],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    whole = spread * torch.randn(*shape[:2], 200, generator=generator) + 5
    for at, number in strange:
        whole[0, 0, at] = number
    scores = whole[..., : shape[2]]  # rows lie apart
    padded = torch.nn.functional.pad(scores.double(), (0, -shape[2] % tokens), value=-torch.inf)
    wanted = padded.unflatten(-1, (-1, tokens)).logsumexp(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "KERNELS", level and find_level(level))
        found = sum_page_masses(scores, tokens).double()
    number = wanted.isfinite() | (wanted == -math.inf)
    assert found[number].tolist() == pytest.approx(wanted[number].tolist(), rel=1e-6, abs=1e-5)
    assert not bool(found[~number].isfinite().any()), "no number, and not a small one"
    assert not bool((found[~number] == -math.inf).any())
