"""Comparing outcomes: what is another number, or another kind of thing, is found."""

from typing import Any

import pytest
import torch

from penstock.tiering.errors import ConfigError

from .outcome.attempt import Raised, attempt
from .outcome.choices import LastChoices, PerToken, noted_choices
from .outcome.closeness import Closeness
from .outcome.compare import difference
from .outcome.generated import Generated

ONES = torch.ones(2, 3)
NAN = torch.tensor([1.0, float("nan")])


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (ONES, ONES.clone()),
        (NAN, NAN.clone()),
        ({"a": [1, 2.0, "x"]}, {"a": [1, 2.0, "x"]}),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (None, None),
    ],
)
@pytest.mark.parametrize("closeness", Closeness)
def test_equal_outcomes(found: Any, wanted: Any, closeness: Closeness) -> None:
    assert difference(found, wanted, closeness) == ""


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (ONES, ONES.bfloat16()),
        (ONES, ONES[:1]),
        (ONES, torch.full((2, 3), float("nan"))),
        (torch.full((2, 3), float("nan")), ONES),
        (ONES * 2, ONES),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        ("x", "y"),
        (2.5, 1.0),
        (None, ONES),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
    ],
)
@pytest.mark.parametrize("closeness", Closeness)
def test_other_outcomes(found: Any, wanted: Any, closeness: Closeness) -> None:
    assert difference(found, wanted, closeness)


def test_one_bit_differs() -> None:
    other = ONES.clone()
    other[0, 0] += torch.finfo(torch.float32).eps
    assert difference(other, ONES, Closeness.BITS)
    assert not difference(other, ONES, Closeness.SUMS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_may_be_a_rounding_off(dtype: torch.dtype) -> None:
    """``generate`` gives them as float32."""
    exact = torch.randn(1, 320, generator=torch.Generator().manual_seed(0)).to(dtype)
    one_rounding = exact * (1 + torch.finfo(dtype).eps)
    far = exact * (1 + 20 * torch.finfo(dtype).eps)
    wanted, near, wrong = (Generated(torch.zeros(1, 1), (x.float(),), greedy=True) for x in (exact, one_rounding, far))
    assert not near.difference(wanted, Closeness.SUMS)
    assert wrong.difference(wanted, Closeness.SUMS)
    assert near.difference(wanted, Closeness.BITS)


def test_logits_of_float32_must_be_closer_than_half_precision() -> None:
    exact = torch.randn(1, 320, generator=torch.Generator().manual_seed(0))
    wanted, near, wrong = (
        Generated(torch.zeros(1, 1), (exact * factor,), greedy=True) for factor in (1, 1 + 1e-6, 1 + 1e-3)
    )
    assert not near.difference(wanted, Closeness.SUMS)
    assert wrong.difference(wanted, Closeness.SUMS)


def test_a_greedy_choice_may_turn_only_where_two_tokens_are_close() -> None:
    logits = torch.tensor([[1.0, 0.0, 1.0 - 1e-6]])
    prompt = torch.tensor([[7]])
    wanted = Generated(torch.cat([prompt, torch.tensor([[0]])], 1), (logits,), greedy=True)
    close = Generated(torch.cat([prompt, torch.tensor([[2]])], 1), (logits,), greedy=True)
    far = Generated(torch.cat([prompt, torch.tensor([[1]])], 1), (logits,), greedy=True)
    assert not close.difference(wanted, Closeness.SUMS)
    assert far.difference(wanted, Closeness.SUMS)
    assert close.difference(wanted, Closeness.BITS)


def test_a_refusal_may_come_through_another_library() -> None:
    def refuse() -> None:
        raise ConfigError("no")

    def pass_on() -> None:
        try:
            refuse()
        except ConfigError as error:
            raise RuntimeError("it did not work") from error

    assert attempt(refuse).is_refusal
    assert attempt(pass_on).is_refusal
    assert not Raised(RuntimeError("x")).is_refusal


def routed(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of two experts each token of one row takes, and where transformers' choice was close."""
    with noted_choices(1, len(scores), wanted=True) as close:
        return torch.topk(scores, 1).indices.float()[None] + 1, close


def test_a_router_may_choose_otherwise_only_where_it_was_close() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.499, -1.0], [0.0, 1.0, -1.0]])
    wanted, close = routed(scores)
    assert close.tolist() == [[False, True, False]]
    other, _ = routed(torch.tensor([[1.0, 0.0, -1.0], [0.499, 0.5, -1.0], [0.0, 1.0, -1.0]]))
    wrong, _ = routed(torch.tensor([[0.0, 1.0, -1.0], [0.5, 0.499, -1.0], [0.0, 1.0, -1.0]]))
    wrong = wrong * 2  # so that it is far for every closeness
    for closeness in Closeness:
        assert not difference(PerToken(wanted, close), PerToken(wanted.clone(), close), closeness)
        assert difference(PerToken(wrong, close), PerToken(wanted, close), closeness)
        assert bool(difference(PerToken(other, close), PerToken(wanted, close), closeness)) is (
            closeness.value == "bits"
        )


def test_close_choices_of_other_tensors_are_not_noted() -> None:
    with noted_choices(2, 3, wanted=True) as close:
        torch.topk(torch.zeros(5, 4), 2)
        torch.topk(torch.zeros(6, 4), 4)
    assert not close.any()


class Router(torch.nn.Module):
    """Takes the best of three experts, for each of two rows."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """The experts that ``scores`` [rows, tokens, 3] choose."""
        return torch.topk(scores.flatten(0, 1), 1).indices


def test_a_new_token_may_be_another_where_the_router_was_close() -> None:
    model, sure, close = Router(), torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 0.499, -1.0])
    with LastChoices(model, 2) as choices:
        model(torch.stack([torch.stack([close, sure]), torch.stack([sure, sure])]))
        model(torch.stack([close[None], sure[None]]))
    noted = choices.close(2)
    assert noted.tolist() == [[False, True], [False, False]]
    assert not choices.close(3).any()
    prompt, first, second = torch.ones(2, 3, dtype=torch.long), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    wanted = Generated(torch.cat([prompt, torch.zeros(2, 2).long()], 1), (first.expand(2, 3),) * 2, True, noted)
    for row, differs in ((0, False), (1, True)):
        logits = first.repeat(2, 1)
        logits[row] = second
        found = Generated(wanted.sequences, (wanted.logits[0], logits), True)
        assert bool(difference(found, wanted, Closeness.FORMAT)) is differs
        assert difference(Generated(wanted.sequences, (logits, logits), True), wanted, Closeness.FORMAT)
