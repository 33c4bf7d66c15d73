"""The handle of a loaded model, ``model.penstock``: what it says about itself, and how it is closed."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...tiering.errors import Closed, ConfigError
from ...tiering.planner.arrangement import Arrangement
from ...tiering.policy.placement.placement import Placement
from ...tiering.policy.reads import Reading
from ..engine.engine import Engine
from ..engine.stats import PrefixStats, Stats
from ..kv.adapter import PagedKV
from ..prefixes.prefill import is_plain
from ..prefixes.prefix import Prefixes
from ..routing.profiling import Recording
from ..tracing.replay import RunRecording
from ..tracing.trace import Trace
from .placeholder_model import replace_tensors


class Handle:
    """``model.penstock``: what penstock says and does about a loaded model."""

    def __init__(
        self, model: PreTrainedModel, engine: Engine, paged: PagedKV | None, prefixes: Prefixes | str | None
    ) -> None:
        """``prefixes``, or why there are none, if they were asked for."""
        self._engine, self.paged = engine, paged
        self.prefixes = None if isinstance(prefixes, str) else prefixes
        """Prompts that are kept on flash, if ``kv_prefix`` asked for it: for those who call the model themselves."""
        self._prefix_problem = prefixes if isinstance(prefixes, str) else ""
        self._modules = _count_modules(model)
        self._model = weakref.ref(model)
        self._finalizer = weakref.finalize(model, engine.close)

    @property
    def arrangement(self) -> Arrangement:
        """All that was decided about the model's memory before it was loaded; ``penstock.plan`` gives the same."""
        return self._engine.arrangement

    @property
    def placement(self) -> Placement:
        """What of the model is where in host memory, under which budget."""
        return self._engine.host_placement

    @property
    def device_placement(self) -> Placement | None:
        """The same of the device's memory; None where the CPU computes."""
        return None if self._engine.device is None else self._engine.device.placement

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that the weights come from."""
        return self._engine.bundle.folder

    @property
    def reading(self) -> Reading:
        """How the drive is read."""
        return self._engine.reading

    def stats(self) -> Stats:
        """Counts, bytes and seconds since the model was loaded."""
        stats = self._engine.stats()
        prompts = PrefixStats(problem=self._prefix_problem) if self.prefixes is None else self.prefixes.stats()
        return replace(stats, prefix=prompts)

    def synchronize(self) -> None:
        """Wait until a device has computed what the calling thread has given it: whoever measures time must. The CPU
        has always done so."""
        if self._engine.device is not None:
            self._engine.device.synchronize()

    def cache(self) -> DynamicCache:
        """An empty KV cache, in pages if the model's KV is. Raises Closed."""
        if self.paged is not None:
            return self.paged.new_cache()
        return DynamicCache(config=self._running("make a cache").config)

    def keeps(self, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a prompt that is generated from with these arguments may come from flash, and go there."""
        model = self._model()
        if self.prefixes is None or not self.prefixes.supported or model is None:
            return False
        # An adapter that somebody put in changes KV.
        return is_plain(input_ids, kwargs) and _count_modules(model) == self._modules

    @property
    def recording(self) -> RunRecording | None:
        """The recording that ``record=FILE`` asked for; its ``stop()`` ends it before the model is closed."""
        return self._engine.recording

    def trace(self, path: str | Path) -> Trace:
        """Record reads, stalls and the compute of each layer from now on, for Perfetto or chrome://tracing.

        The file ``path`` is written, readable by this user only, when the result's ``stop()`` is called, at the end of
        a ``with`` over it, or when the model is closed. One trace at a time. Raises TraceError, before anything is
        recorded, when one is being recorded or ``path`` cannot be written, and Closed.
        """
        return self._engine.trace(self._running("record a trace of it"), path)

    def profile(self, text: str = "") -> Recording:
        """Record from now on which experts each token uses, of one sequence at a time.

        It ends with the result's ``stop()`` or with a ``with`` over it; its ``routes()`` is a routing trace, of a text
        called ``text``, which can be saved. Raises TraceError for a model without experts, and Closed.
        """
        return Recording(self._running("record its routing"), text)

    def close(self) -> None:
        """Stop reading, give the memory back, write what is recorded. Idempotent; the model cannot compute any more.
        Raises TraceError, when all else is done, if something cannot be written."""
        model = self._model()
        if self.prefixes is not None:
            self.prefixes.close()  # what is still to be written may lie in pages
        if self._finalizer.detach() and model is not None:
            replace_tensors(model, self._engine.tier.holds)
        self._engine.close()

    def _running(self, purpose: str) -> PreTrainedModel:
        """The model, unless it was closed. Raises Closed."""
        model = self._model()
        if model is None or not self._finalizer.alive:
            raise Closed(f"this model was closed; load it again to {purpose}")
        return model


def handle(model: nn.Module) -> Handle:
    """The Handle of ``model``, as ``model.penstock`` gives it, with a type that checkers see.

    Raises ConfigError for a model that was neither loaded nor wrapped by penstock.
    """
    found = getattr(model, "penstock", None)
    if isinstance(found, Handle):
        return found
    raise ConfigError(f"this {type(model).__name__} is no model of penstock; load it with penstock.load, or wrap it")


def _count_modules(model: nn.Module) -> int:
    return sum(1 for _ in model.modules())
