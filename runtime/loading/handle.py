"""The handle of a loaded model, ``model.penstock``: statistics, traces, the KV cache, closing."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...kernels.process.ending import ENDING
from ...kernels.process.forks import FORKED
from ...kernels.process.interrupts import SHIELD
from ...tiering.errors import Closed, ConfigError, Forked
from ...tiering.planner.arrangement import Arrangement
from ...tiering.planner.occupancy import TierUse
from ...tiering.policy.drive_reading import Reading
from ...tiering.policy.placement.placement import Placement
from ...tiering.units import format_size
from ..engine.engine import Engine
from ..engine.stats import PrefixStats, Stats
from ..modules.model_forward import Forwards
from ..prefixes.plain import is_plain
from ..routing.profiling import RoutingRecording
from ..tiers.kept_copies import KeptCopies
from ..tracing.trace import Trace
from .placeholder_model import take_away

if TYPE_CHECKING:
    from ..kv.adapter import PagedKV
    from ..prefixes.prefix import Prefixes
    from ..tracing.run_recording import RunRecording


class Handle:
    """``model.penstock``: the statistics of a loaded model, its traces, its KV cache, and its end."""

    def __init__(
        self, model: PreTrainedModel, engine: Engine, paged: "PagedKV | None", prefixes: "Prefixes | str | None"
    ) -> None:
        """``paged`` makes KV caches in pages, if KV is in pages. ``prefixes`` are the kept prompts, or the reason why
        there are none although ``kv_prefix`` asked for them."""
        self._engine, self.paged = engine, paged
        self.prefixes = None if isinstance(prefixes, str) else prefixes
        """Prompts kept on flash, if ``kv_prefix`` asked for it. ``generate`` restores them; if you call the model
        directly, restore them yourself."""
        self._prefix_problem = prefixes if isinstance(prefixes, str) else ""
        self._model, self._closed = weakref.ref(model), False
        self._finalizer = weakref.finalize(model, engine.abandon)
        ENDING.register()

    def __repr__(self) -> str:
        model = self._model()
        state = "closed" if self._closed or model is None else "open"
        memory = self.placement.budget
        return (
            f"<penstock handle of {type(model).__name__}, {state}: {format_size(memory)} of host memory, {self.bundle}>"
        )

    @property
    def arrangement(self) -> Arrangement:
        """The decisions about the model's memory, made before it was loaded. ``penstock.plan`` gives the same."""
        return self._engine.arrangement

    @property
    def placement(self) -> Placement:
        """Which weights lie where in host memory, and its budget."""
        return self._engine.host_placement

    @property
    def device_placement(self) -> Placement | None:
        """Which weights lie where in the device's memory; None where the CPU computes."""
        return None if self._engine.device is None else self._engine.device.placement

    @property
    def bundle(self) -> Path:
        """Folder of the bundle that the weights come from."""
        return self._engine.bundle.folder

    @property
    def copies(self) -> KeptCopies:
        """Counts the weights that were changed, and are kept in memory."""
        return self._engine.weights.copies

    @property
    def reading(self) -> Reading:
        """How each drive is read: backend, bytes of a read, reads in flight."""
        return self._engine.reading

    @property
    def forwards(self) -> Forwards:
        """The calls of the model."""
        return self._engine.forwards

    def stats(self) -> Stats:
        """Counts, bytes and seconds since the model was loaded. Raises Forked in a child of the process that did it."""
        if self._engine.forked:
            raise Forked(FORKED)
        stats = self._engine.stats()
        prompts = PrefixStats(problem=self._prefix_problem) if self.prefixes is None else self.prefixes.stats()
        return replace(stats, prefix=prompts)

    def watch(self) -> AbstractContextManager[Callable[[], Mapping[str, TierUse]]]:
        """Watch the tiers, in a ``with``. It gives a function that says how full the regions of "host", and of "device"
        if there is one, are now. As long as somebody watches, it is counted how often each expert is asked for."""
        self._running("watch its memory")
        return self._engine.watch()

    def synchronize(self) -> None:
        """Wait until a device has computed all that the calling thread has given it. Call it before you take a time.
        Where the CPU computes, it returns at once."""
        if self._engine.device is not None:
            self._engine.device.synchronize()

    def cache(self) -> DynamicCache:
        """An empty KV cache, in pages if the model's KV is. Raises Closed."""
        model = self._running("make a cache")
        return DynamicCache(config=model.config) if self.paged is None else self.paged.new_cache()

    def keeps(self, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a prompt ``input_ids`` [sequences, tokens] may come from flash, and go there, when ``generate`` is
        called with the arguments ``kwargs``, as far as these decide."""
        prefixes = self.prefixes
        if prefixes is None or not prefixes.supported or self._engine.forked:
            return False
        return is_plain(input_ids, kwargs, prefixes.flags)

    @property
    def recording(self) -> "RunRecording | None":
        """The recording that ``record=FILE`` asked for, else None. Its ``stop()`` ends it earlier than ``close``."""
        return self._engine.recording

    def trace(self, path: str | Path) -> Trace:
        """Record reads, stalls and the compute of each layer from now on, for Perfetto or chrome://tracing.

        The file ``path`` is written, readable by this user only, when the result's ``stop()`` is called, at the end of
        a ``with`` over it, or when the model is closed. One trace at a time. Raises TraceError, before anything is
        recorded, when one is being recorded or ``path`` cannot be written, and Closed.
        """
        return self._engine.trace(self._running("record a trace of it"), path)

    def profile(self, text: str = "") -> RoutingRecording:
        """Record from now on which experts each token uses, one sequence at a time.

        The result's ``stop()``, or the end of a ``with`` over it, ends the recording. Its ``routes()`` is a routing
        trace of a text called ``text``, which can be saved. Raises TraceError for a model without experts, and Closed.
        """
        return RoutingRecording(self._running("record its routing"), text)

    def close(self) -> None:
        """Stop reading, give the memory back, write traces and recordings. Idempotent. The model cannot compute any
        more. Raises TraceError, when all else is done, if a file cannot be written."""
        if self._engine.forked:
            return
        with SHIELD:
            model = self._model()
            if self.prefixes is not None:
                self.prefixes.close()  # prompts that are still to be written may lie in pages
            if not self._closed and model is not None:
                take_away(model, self._engine.tier.holds)
            self._closed = True
            self._engine.close()  # a wait in it may be interrupted: then the finalizer, or another call, goes on
            self._finalizer.detach()

    def _running(self, purpose: str) -> PreTrainedModel:
        """The model, unless it was closed. Raises Closed, and Forked."""
        if self._engine.forked:
            raise Forked(FORKED)
        model = self._model()
        if model is None or self._closed:
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
