"""Norms by the root mean square: bit for bit a module's own, at every level, or not at all."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from penstock.kernels.modules.rms_norm import Compute, RMSNorm, find_rms_norm, try_kernels
from penstock.kernels.native import RUNS, find_level

pytestmark = pytest.mark.levels
native = pytest.mark.skipif(not RUNS, reason="no compiler at installation")
EPS = 1e-6


def normed(state: torch.Tensor) -> torch.Tensor:
    wide = state.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)


FORMS: dict[str, Compute] = {
    "rounded before": lambda state, weight: weight * normed(state).to(state.dtype),
    "one and the weight": lambda state, weight: (normed(state) * (1.0 + weight.float())).type_as(state),
    "rounded after": lambda state, weight: (weight * normed(state)).to(state.dtype),
}


def found(level: str, compute: Compute, width: int, dtype: torch.dtype) -> RMSNorm | None:
    kernels = find_level(level)
    assert kernels is not None
    return try_kernels(compute, width, dtype, EPS, kernels)


@native
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", RUNS)
@settings(max_examples=25, deadline=None)
@given(
    width=st.one_of(st.integers(1, 300), st.sampled_from([512, 1000, 2048, 4096, 8192])),
    rows=st.integers(1, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    exponent=st.integers(-70, 60),
    seed=st.integers(0, 1 << 20),
)
def test_equal_in_every_bit(
    level: str, form: str, width: int, rows: int, dtype: torch.dtype, exponent: int, seed: int
) -> None:
    norm = found(level, FORMS[form], width, dtype)
    assert norm is not None, "no form has torch's bits"
    chance = torch.Generator().manual_seed(seed)
    state = (torch.randn(rows, width, generator=chance).double() * 2.0**exponent).to(dtype)
    weight = torch.randn(width, generator=chance).to(dtype)
    bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
    assert torch.equal(norm(state, weight).view(bits), FORMS[form](state, weight).view(bits))


@native
def test_each_form_is_told_from_the_others() -> None:
    forms = [found(RUNS[-1], compute, 128, torch.bfloat16) for compute in FORMS.values()]
    assert [norm and norm.form for norm in forms] == [0, 1, 2]


OTHERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "another sum": lambda state, weight: weight * (state * torch.rsqrt((state**2).cumsum(-1)[..., -1:] / 128 + EPS)),
    "another epsilon": lambda state, weight: weight * functional.rms_norm(state, (128,), eps=2e-6),
    "a mean taken off": lambda state, weight: weight * normed(state - state.mean(-1, keepdim=True)),
    "one that fails": lambda state, weight: state @ weight[:3],
}


@native
@pytest.mark.parametrize("other", OTHERS)
def test_other_computations_are_not_taken_for_one(other: str) -> None:
    assert found(RUNS[-1], OTHERS[other], 128, torch.float32) is None


def test_other_dtypes_have_none() -> None:
    assert find_rms_norm(FORMS["rounded before"], 128, torch.float16, EPS) is None
