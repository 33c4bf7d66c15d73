"""Where each thread is: inside of which forward, and with which modules' weights leased for the layer around them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...kernels.process.interrupts import calls_others
from ...tiering.events import Slot
from ...tiering.units import BlockId
from ..tiers.gradients import without_gradients
from ..tiers.streamed_weight import forgetting

Slots = Mapping[BlockId, Slot]


class Scopes(threading.local):
    """Per thread: whether it computes a module of the model, and the slots of what is leased for the layer or the part
    of it that it computes, by module."""

    def __init__(self, weights_want: Callable[[], bool], check: Callable[[], None]) -> None:
        """``weights_want`` says whether a weight of the model requires gradients. ``check`` raises where the model must
        not compute."""
        self._weights_want, self._check = weights_want, check
        self.inside = False
        self.leased: dict[object, Slots] = {}

    @calls_others
    def run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``original``, the outermost forward of the thread or one inside. Torch remembers no weight meanwhile, for
        they will not stay, and no gradients flow through them."""
        if self.inside:
            return original(*args, **kwargs)
        with self.entered():
            out = original(*args, **kwargs)
        return without_gradients(out, (args, kwargs), self._weights_want)

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
