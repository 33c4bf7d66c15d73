"""Puts off the forward of a token behind which the next one is known: both are computed in one call, later.

``generate`` of transformers asks for logits behind every token. Where a grammar forces the next one, nobody looks at
them.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...tiering.errors import PenstockError


class Deferral:
    """The tokens of one answer that are put off. ``knows`` says of all tokens so far whether the next one is known, and
    ``width`` is the number of a model's logits."""

    def __init__(self, knows: Callable[[torch.Tensor], bool], width: int) -> None:
        self._knows, self._width = knows, width
        self._count = 0
        self._skips = False

    def begin(self, input_ids: torch.Tensor) -> int:
        """A forward of the last of ``input_ids`` comes. Returns how many tokens it is to have."""
        self._skips = self._knows(input_ids)
        self._count += 1
        return self._count

    def skip(self, kwargs: Mapping[str, Any]) -> CausalLMOutputWithPast | None:
        """What a forward with ``kwargs`` returns that is put off; None: it has to be computed now."""
        if not self._count:  # a prompt
            return None
        if kwargs["input_ids"].shape[1] != self._count:
            raise PenstockError("this model computes one token at a time behind a prompt; ask without a grammar")
        if not self._skips:
            self._count = 0
            return None
        logits = torch.zeros(1, 1, self._width, device=kwargs["input_ids"].device)
        return CausalLMOutputWithPast(logits=logits, past_key_values=kwargs["past_key_values"])


deferral: ContextVar[Deferral | None] = ContextVar("penstock_deferral", default=None)
"""That of the answer that this strand computes."""
