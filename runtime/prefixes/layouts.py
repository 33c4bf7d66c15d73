"""Which tensors a model's prompts are stored as. A file with others is not the model's, whatever its checksums say.

A process that stores a prompt notes what it has stored, with the trials of this machine, away from the store. Where
that is not known, because the store comes from elsewhere, two tokens are computed, once for each model and machine.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ...kernels.products.row_parts import BIT_TRIALS
from ...tiering.prefix.roles import layout_of
from .calls import compute_part
from .prefix_source import Contents, take_contents

_TOKENS = 2


class Layouts:
    """What ``layout_of`` gives for the prompts that ``model`` stores, in blocks of ``block`` tokens. ``kind`` names
    everything that keys and values depend on, as for other trials. For several threads."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._tried: dict[str, str | None] = {}

    def note(self, contents: Contents, kind: str) -> None:
        """The model ``kind`` has computed ``contents``."""
        _note(layout_of(contents.parts, contents.state_parts), kind)

    def is_own(self, layout: str, kind: str, model: Any, token_ids: Sequence[int]) -> bool | None:
        """Whether ``model``, called ``kind``, stores prompts such as ``token_ids`` with this ``layout``. May compute a
        few of them. None: that is not known, because there is no model to try."""
        if BIT_TRIALS.get(_key(layout, kind), False):
            return True
        if model is None:
            return None
        if kind not in self._tried:
            self._tried[kind] = _try(model, token_ids, self._block)
            if (own := self._tried[kind]) is not None:
                _note(own, kind)
        return layout == self._tried[kind]


def _try(model: Any, token_ids: Sequence[int], block: int) -> str | None:
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([([*token_ids[:_TOKENS]] * _TOKENS)[:_TOKENS]], device=model.device)
    with torch.no_grad():
        compute_part(model, ids, cache, _TOKENS)
    contents = take_contents(cache, block)
    if contents is None:
        return None
    contents.release()
    return layout_of(contents.parts, contents.state_parts)


def _note(layout: str, kind: str) -> None:
    BIT_TRIALS[_key(layout, kind)] = True


def _key(layout: str, kind: str) -> str:
    return f"prompts are stored as {layout}, {kind}"
