"""Cases: the same seed gives the same case, which can be written, read and made smaller."""

import pytest

from .case import Case
from .shrink import shrink
from .steps.step import STEPS


@pytest.mark.parametrize("seed", range(20))
def test_a_case_is_what_its_seed_says_and_what_its_text_says(seed: int) -> None:
    case = Case.of(seed)
    assert case == Case.of(seed)
    assert Case.read(str(case)) == case


def test_every_step_is_drawn() -> None:
    drawn = {type(step).__name__ for seed in range(400) for step in Case.of(seed).steps}
    assert drawn == STEPS.keys()


def test_a_case_that_fails_is_made_smaller() -> None:
    case = next(case for case in map(Case.of, range(1000)) if _hooked(case) and case.model.dtype == "bfloat16")
    small = shrink(case, _hooked)
    assert [type(step).__name__ for step in small.steps] == ["Hook"]
    assert small.model.dtype == "float32"
    assert small.settings == type(small.settings)()


def _hooked(case: Case) -> bool:
    return any(type(step).__name__ == "Hook" for step in case.steps)
