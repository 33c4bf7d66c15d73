"""Strands: they meet at weights, and go their own ways between them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import penstock
from penstock.runtime.modules.lockstep import Lockstep, Strand
from tests.support.tiny_models import save_tiny


class Model(nn.Module):
    """Two linear layers, one with a bias, with something between them that a test may set."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64, bias=False).bfloat16(), nn.Linear(64, 64).bfloat16()
        self.between: Callable[[torch.Tensor], torch.Tensor] = torch.relu

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.between(self.first(state)))
        return out


class Counted:
    """A forward that counts its calls and the rows of each."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        self._forward = module.forward
        module.forward = self

    def __call__(self, state: torch.Tensor) -> Any:
        self.rows.append(state.shape[0] * state.shape[1])
        return self._forward(state)


class Ends:
    """What the strands of a test ended with."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.errors: dict[str, BaseException] = {}

    def of(self, name: str) -> Callable[[Any, BaseException | None], None]:
        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                self.values[name] = value
            else:
                self.errors[name] = error

        return ended


def state(seed: int, tokens: int = 1) -> torch.Tensor:
    return torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def lockstep(model: Model) -> Iterator[Lockstep]:
    with torch.no_grad():
        made = Lockstep(model, {}, {}, exact=True, clock=Clock())
        yield made
        made.close()


class Clock:
    """Goes on by one second each time that it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def finish(lockstep: Lockstep) -> None:
    while lockstep.advance(1.0):
        pass


def test_rows_meet_and_get_what_each_gets_alone(model: Model) -> None:
    wanted = [model(state(seed)) for seed in range(6)]
    counted, ends = Counted(model.first), Ends()
    lockstep = Lockstep(model, {}, {}, exact=True)
    with torch.no_grad():
        for seed in range(6):
            lockstep.start(lambda seed=seed: model(state(seed)), ends.of(str(seed)))
        finish(lockstep)
    lockstep.close()
    assert counted.rows == [6]
    assert all(torch.equal(ends.values[str(seed)], out) for seed, out in enumerate(wanted))
    assert len(lockstep) == 0


def test_who_comes_later_meets_the_others_in_the_next_round(model: Model, lockstep: Lockstep) -> None:
    ends = Ends()
    lockstep.start(lambda: [model(state(0)), model(state(1))], ends.of("two"))
    assert lockstep.begins
    lockstep.advance(1.0)
    lockstep.start(lambda: model(state(2)), ends.of("one"))
    assert not lockstep.begins, "the first strand is in the middle of its round"
    lockstep.advance(1.0)
    assert lockstep.begins
    finish(lockstep)
    assert sorted(ends.values) == ["one", "two"]
    assert torch.equal(ends.values["one"], model(state(2)))


def test_a_place_that_prompts_pass_as_a_whole_is_no_detour_for_answers() -> None:
    """A prompt comes first: it passes the second module as a whole, an answer stops inside of it, before the last."""
    inner = Model()
    outer = nn.Sequential(nn.Linear(64, 64).bfloat16(), inner, nn.Linear(64, 64).bfloat16())
    lockstep, ends, rounds = Lockstep(outer, {}, {inner: nullcontext}, exact=True), Ends(), 0
    with torch.no_grad():
        lockstep.start(lambda: outer(state(0, 20)), ends.of("prompt"))
        finish(lockstep)
        lockstep.start(lambda: outer(state(1)), ends.of("answer"))
        while lockstep.waits:
            rounds += lockstep.begins
            lockstep.advance(1.0)
    lockstep.close()
    assert torch.equal(ends.values["answer"], outer(state(1)))
    assert rounds == 1


@pytest.mark.parametrize("name", ["llama", "opt", "deepseek_v3", "gpt_oss"])
def test_a_token_takes_one_round_whatever_came_first(name: str, tmp_path: Path) -> None:
    """Modules are registered in another order than they compute: projections behind layers, routers behind experts."""
    source, rounds, ends = save_tiny(name, tmp_path / name, torch.bfloat16), 0, Ends()
    least = penstock.plan(source).minimum_host_memory
    with penstock.load(source, store=tmp_path / "store", host_memory=least + (100 << 10)) as model:
        forwards = penstock.handle(model).forwards
        with forwards.session() as session:
            lockstep = Lockstep(model, forwards.leased, forwards.divided, exact=True)
            caches = [model(torch.tensor([[5]]), use_cache=True).past_key_values]

            def answer(tokens: int) -> None:
                for _ in range(tokens):
                    model(torch.tensor([[7]]), past_key_values=caches[0])

            lockstep.start(lambda: caches.append(model(torch.tensor([[5] * 40]))), ends.of("prompt"))
            finish(lockstep)
            lockstep.start(lambda: answer(3), ends.of("answer"))
            while lockstep.waits:
                if lockstep.begins:
                    rounds += 1
                    session.begin()
                lockstep.advance(1.0)
            lockstep.close()
    assert ends.errors == {}
    assert rounds == 3


def test_an_error_between_places_ends_its_strand_alone(model: Model, lockstep: Lockstep) -> None:
    ends = Ends()

    def between(out: torch.Tensor) -> torch.Tensor:
        if torch.equal(out, wrong):
            raise ValueError("damaged")
        return torch.relu(out)

    wrong = model.first(state(1))
    model.between = between
    for seed in range(3):
        lockstep.start(lambda seed=seed: model(state(seed)), ends.of(str(seed)))
    finish(lockstep)
    assert [*ends.values] == ["0", "2"]
    assert isinstance(ends.errors["1"], ValueError)


def test_an_error_at_a_place_is_raised_in_each_strand_that_waits_there(model: Model) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise OSError("the drive is gone")

    model.second.forward = fail
    lockstep, ends = Lockstep(model, {}, {}, exact=True), Ends()

    def careful() -> str:
        try:
            return str(model(state(0)))
        except OSError as error:
            return f"caught: {error}"

    with torch.no_grad():
        lockstep.start(careful, ends.of("careful"))
        lockstep.start(lambda: model(state(1)), ends.of("other"))
        finish(lockstep)
    assert ends.values == {"careful": "caught: the drive is gone"}
    assert isinstance(ends.errors["other"], OSError)


def test_a_cancelled_strand_gives_back_what_it_holds_and_is_not_told(model: Model, lockstep: Lockstep) -> None:
    ends, given_back = Ends(), []

    def work() -> None:
        try:
            model(state(0))
        finally:
            given_back.append(True)

    strand = lockstep.start(work, ends.of("cancelled"))
    lockstep.start(lambda: model(state(1)), ends.of("other"))
    lockstep.cancel(strand)
    assert given_back == [True]
    finish(lockstep)
    lockstep.cancel(strand)
    assert [*ends.values] == ["other"]
    assert ends.errors == {}


def test_a_paused_strand_stays_where_it_is(model: Model, lockstep: Lockstep) -> None:
    ends = Ends()
    strand = lockstep.start(lambda: model(state(0)), ends.of("paused"))
    lockstep.pause(strand, True)
    lockstep.start(lambda: model(state(1)), ends.of("other"))
    finish(lockstep)
    assert [*ends.values] == ["other"]
    assert not lockstep.waits
    lockstep.pause(strand, False)
    finish(lockstep)
    assert torch.equal(ends.values["paused"], model(state(0)))


def test_calls_of_several_tokens_take_their_share_of_a_round(model: Model, lockstep: Lockstep) -> None:
    """A prompt of two calls ends in the third round of a strand that decodes: it passes one place in a round."""
    rounds: list[int] = []
    ends = Ends()

    def decode() -> None:
        for number in range(8):
            rounds.append(number)
            model(state(number))

    lockstep.start(decode, ends.of("decode"))
    lockstep.start(lambda: (model(state(0, 50)), rounds[-1]), ends.of("prompt"))
    while lockstep.advance(0.1):
        pass
    out, when = ends.values["prompt"]
    assert when == 2
    assert torch.equal(out, model(state(0, 50)))
    assert rounds == [*range(8)]


def test_works_beside_each_other_come_back_in_their_order(model: Model, lockstep: Lockstep) -> None:
    ends = Ends()
    works = [lambda seed=seed: model(state(seed, 20)) for seed in range(3)]
    lockstep.start(lambda: lockstep.together(works), ends.of("parent"))
    finish(lockstep)
    for seed, out in enumerate(ends.values["parent"]):
        assert torch.equal(out, model(state(seed, 20)))
    assert len(lockstep) == 0


@pytest.mark.parametrize("when", ["at once", "later"])
def test_the_first_error_of_works_ends_the_others(model: Model, lockstep: Lockstep, when: str) -> None:
    ends, ended = Ends(), []

    def fails() -> None:
        if when == "later":
            model(state(1))
        raise KeyError("lost")

    def other() -> None:
        try:
            model(state(0))
            model(state(0))
        finally:
            ended.append(True)

    lockstep.start(lambda: lockstep.together([other, fails, other]), ends.of("parent"))
    finish(lockstep)
    assert isinstance(ends.errors["parent"], KeyError)
    assert len(lockstep) == 0
    assert ended == [True] * (1 if when == "at once" else 2)


def test_closing_ends_all_and_leaves_the_model_as_it_was(model: Model) -> None:
    before = {module: dict(vars(module)) for module in model.modules()}
    lockstep, ends = Lockstep(model, {}, {}, exact=True), Ends()
    strands: list[Strand] = [lockstep.start(lambda: model(state(0)), ends.of("a")) for _ in range(3)]
    lockstep.close()
    assert all(strand.dead for strand in strands)
    assert {module: dict(vars(module)) for module in model.modules()} == before
    assert ends.values == ends.errors == {}
