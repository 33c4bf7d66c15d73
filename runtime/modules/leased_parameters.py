"""Parameters of a streamed module: its weights as everybody sees them, and as its own forward does under a lease."""

from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any

import torch

from ..tiers.stored_parameters import StoredParameters
from ..tiers.streamed_weight import StreamedWeight


class LeasedParameters(StoredParameters):
    """Takes the place of a module's ``_parameters``.

    Only a thread that computes the module sees weights in slots, and only by their names. Everything else sees the
    StreamedWeights, or what somebody put in their places.
    """

    def __init__(
        self, parameters: dict[str, Any], stored: Mapping[str, StreamedWeight], changed: Callable[[], None]
    ) -> None:
        """``stored`` are those of ``parameters`` that are streamed; ``changed`` is called when one gets another
        value."""
        super().__init__(parameters, stored)
        self._changed = changed
        self._bound: dict[int, Mapping[str, torch.Tensor]] = {}

    def __getitem__(self, name: str) -> Any:
        bound = self._bound.get(get_ident())
        if bound is not None and name in bound:
            return bound[name]
        return super().__getitem__(name)

    def note_change(self) -> None:
        """See StoredParameters."""
        self._changed()

    def bind(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Show ``parameters`` to the calling thread, in the place of what has their names."""
        self._bound[get_ident()] = parameters

    def unbind(self) -> None:
        """End what ``bind`` did."""
        self._bound.pop(get_ident(), None)
