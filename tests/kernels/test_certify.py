"""Masses of pages: what is certainly omitted, and which pages that needs, against plain arithmetic."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels.kv.certify import Masses
from penstock.kernels.kv.summaries.base import Bounds
from penstock.tiering.policy.certificate import Certificate, select

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
    masses = 50 + spread * torch.randn(rows, 1, pages, generator=generator, dtype=torch.float64)
    below, above = slack * torch.rand(2, rows, 1, pages, generator=generator, dtype=torch.float64)
    return Bounds(masses - below, masses + above), masses


def certified(bounds: Bounds, masses: torch.Tensor, epsilon: float, *, outside: float | None = None) -> Certificate:
    known = Masses(bounds)
    if outside is not None:
        known.add_outside(torch.full((*masses.shape[:2], 1), outside))
    choice = select(known, epsilon=epsilon)
    try:
        while True:
            pages = [page for run in next(choice) for page in run.pages]
            known.add(pages, masses[..., pages])
    except StopIteration as end:
        certificate: Certificate = end.value
        return certificate


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
    known = Masses(bounds)
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
    known = Masses(world(*case)[0])
    found = [set(known.needed(epsilon, hopeful=hopeful)) for epsilon in (0.5, 0.1, 1e-2, 1e-4, 1e-8)]
    assert all(few <= many for few, many in pairwise(found))


def test_a_page_of_which_nothing_is_known_is_read() -> None:
    upper = torch.tensor([[[0.0, math.inf, 0.0, -50.0]]])
    lower = torch.tensor([[[0.0, -math.inf, 0.0, -50.0]]])
    masses = torch.tensor([[[0.0, -90.0, 0.0, -50.0]]], dtype=torch.float64)
    assert certified(Bounds(lower, upper), masses, 1e-3).pages == (0, 1, 2)


def test_everything_is_read_where_masses_are_no_numbers() -> None:
    upper = torch.tensor([[[9.0, 0.0, -50.0]]])
    masses = torch.tensor([[[math.nan, 0.0, -50.0]]], dtype=torch.float64)
    certificate = certified(Bounds(upper, upper), masses, 1e-3)
    assert certificate.pages == (0, 1, 2)
    assert certificate.omitted == (0.0,)


def test_before_anything_is_read_all_may_be_omitted() -> None:
    bounds, _ = world(4, 2, 1.0, 0.1, 0)
    assert Masses(bounds).omitted() == [1.0, 1.0]


def test_masses_may_differ_by_hundreds_of_orders_of_magnitude() -> None:
    masses = torch.tensor([[[-5000.0, 5000.0, 4000.0]]], dtype=torch.float64)
    certificate = certified(Bounds(masses, masses), masses, 1e-9)
    assert certificate.pages == (1,)
    assert certificate.most == pytest.approx(0.0, abs=1e-300)
