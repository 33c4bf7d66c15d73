"""Places where strands meet: a module computes the calls that wait there, each row with the bits that it has alone."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...kernels.products.row_order import each_row_alone
from ..checkpoints.modules import is_experts
from .few_rows import has_few_rows

Joining = Literal["row", "token"]
"""How calls of one token are joined: rows [1, 1, width] of a linear layer, or tokens [1, width] of experts."""


@dataclass(eq=False, slots=True)
class Place:
    """A module where strands meet."""

    forward: Callable[..., Any]
    """The module's forward for one call."""
    joining: Joining | None
    """How calls of one token can be joined, if they can."""
    several: Callable[[Sequence[Sequence[torch.Tensor]]], list[torch.Tensor]] | None
    """Computes calls of several tokens beside each other, if the module can."""
    lease: Callable[[], AbstractContextManager[Any]]
    """Keeps the module's weights in memory, for several calls."""
    whole: bool = False
    """Whether only calls of several tokens stop here, for all modules inside at once."""
    order: int = -1
    """Its position on the route; -1: nobody was there yet."""


passed: ContextVar[Place | None] = ContextVar("penstock_passed", default=None)
"""The place that a strand has reached last in its forward."""


class Route:
    """All places that were reached, in the order of a forward.

    It is found by watching: a new place comes right behind the one that its strand was at before. Modules are not
    always registered in the order in which they compute, and prompts pass some as a whole inside of which answers stop.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []

    def __len__(self) -> int:
        return len(self._places)

    def pass_by(self, place: Place) -> None:
        """The strand that calls this has reached ``place``."""
        if place.order < 0:
            before = passed.get()
            at = 0 if before is None else before.order + 1
            self._places.insert(at, place)
            for number, each in enumerate(self._places[at:], at):
                each.order = number
        passed.set(place)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call that a strand waits for."""

    place: Place
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def joinable(self) -> bool:
        """Whether it can be joined with others at its place."""
        if self.kwargs or not all(isinstance(each, torch.Tensor) for each in self.args):
            return False
        if self.place.joining == "row":
            return len(self.args) == 1 and self.args[0].shape[:-1] == (1, 1)
        return self.place.joining == "token" and len(self.args) == 3 and self.tokens == 1

    @property
    def tokens(self) -> int:
        """The tokens of the call, as far as its first argument tells."""
        state = self.args[0] if self.args else None
        if not isinstance(state, torch.Tensor) or state.dim() < 2:
            return 1
        return state.shape[0] * state.shape[1] if state.dim() > 2 else state.shape[0]


Outcome = tuple[Any, BaseException | None]
"""The result of a call, or the error that ended it."""


def find_joining(module: nn.Module) -> Joining | None:
    """Return how calls of ``module`` can be joined. None if each is computed by itself."""
    if has_few_rows(module):
        return "row"
    return "token" if is_experts(module) else None


def compute_joined(place: Place, arrivals: Sequence[Arrival], *, exact: bool) -> list[Outcome]:
    """Compute ``arrivals``, which can be joined, in one call. ``exact``: each row gets the bits that it has alone."""
    columns = zip(*(arrival.args for arrival in arrivals), strict=True)
    try:
        with each_row_alone() if exact else nullcontext():
            out = place.forward(*map(torch.cat, columns))
    except BaseException as error:
        return [(None, error)] * len(arrivals)
    return [(row, None) for row in out.split(1)]


def compute_beside(arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Compute ``arrivals`` at one place beside each other, each with the bits that it has alone."""
    several = arrivals[0].place.several
    if several is None or len(arrivals) == 1 or any(len(each.args) != 3 or each.kwargs for each in arrivals):
        return [compute_one(arrival) for arrival in arrivals]
    try:
        return [(out, None) for out in several([arrival.args for arrival in arrivals])]
    except BaseException as error:
        return [(None, error)] * len(arrivals)


def compute_one(arrival: Arrival) -> Outcome:
    """Compute ``arrival`` by itself."""
    try:
        return arrival.place.forward(*arrival.args, **arrival.kwargs), None
    except BaseException as error:
        return None, error
