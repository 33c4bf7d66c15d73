"""Where each thread is: inside of which forward, and with which modules' weights leased for the layer around them."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from ...kernels.process.interrupts import calls_others
from ...tiering.events import Slot
from ...tiering.units import BlockId
from ..tiers.gradients import without_gradients
from ..tiers.streamed_weight import forgetting, wants_gradients
from ..tiers.views import SlotViews

Slots = Mapping[BlockId, Slot]
Views = Mapping[BlockId, tuple[tuple[str, ...], SlotViews[tuple[nn.Parameter, ...]]]]
"""By block, the names of a module's weights, and the parameters on its slots."""


class Leased(NamedTuple):
    """The weights of a module in slots that are leased around it."""

    slots: Slots
    views: Views
    """Those of the module by which they were made."""
    weights: Mapping[str, nn.Parameter]


class Scopes(threading.local):
    """Per thread: whether it computes a module of the model, whether it computes for several strands, and what
    is leased for the layer or the part of it that it computes, by module."""

    def __init__(self, check: Callable[[], None]) -> None:
        """``check`` raises where the model must not compute."""
        self._check = check
        self.inside = self.shared = False
        self.leased: dict[object, Leased] = {}

    @calls_others
    def run(self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``original``, a forward of ``module``: the outermost one of the thread or one inside. Torch remembers no
        weight meanwhile, for they will not stay, and no gradients flow through them."""
        if self.inside:
            return original(*args, **kwargs)
        with self.entered():
            out = original(*args, **kwargs)
        return without_gradients(out, (args, kwargs), functools.partial(wants_gradients, module))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """In here the thread computes a module, as ``run`` says."""
        if self.inside:
            yield
            return
        self._check()
        self.inside = True
        try:
            with forgetting():
                yield
        finally:
            self.inside = False
            self.leased.clear()
