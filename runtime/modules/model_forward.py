"""The outermost forward of a model: tells the planner where each token begins and ends, and counts.

The forward of each module, which leases its weights, is in streamed.py.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn

from ...kernels.memory.arena import ArenaClosed
from ...kernels.memory.heap import trim
from ...kernels.process.ending import ENDING
from ...kernels.process.forks import FORKED, leave_at_fork
from ...kernels.process.interrupts import SHIELD, calls_others
from ...tiering.errors import Closed, Forked
from ...tiering.policy.prefetch.predictor_choice import Predictors
from ..checkpoints.modules import positional_names
from ..kv.cache.growing import growing
from ..kv.cache.unbounded import Unbounded
from ..tiers.compute_tier import ComputeTier
from ..tiers.device.tier import DeviceTier
from .row_attention import IMPLEMENTATION
from .run_meter import RunMeter
from .scopes import Scopes

Around = Callable[[dict[str, Any]], AbstractContextManager[None]]
"""Entered around each forward of the model with its keyword arguments, which it may change."""

Leases = dict[nn.Module, Callable[[], AbstractContextManager[Any]]]

_inside: ContextVar[bool] = ContextVar("penstock_strand_inside", default=False)
"""Whether a strand is inside of a forward of the model."""

_PROMPT = 16
"""Tokens above which a forward leaves enough on the heap to be worth giving back."""


class Forwards:
    """The calls of one model, from any thread."""

    def __init__(
        self,
        tier: ComputeTier,
        device: DeviceTier | None,
        predictors: Predictors,
        *,
        expert_bytes: float,
        check_caches: Callable[[int, Unbounded], None] | None,
        meter: RunMeter,
    ) -> None:
        """``expert_bytes`` is the mean size of an expert. ``check_caches`` is called after each forward with the bytes
        of all caches that transformers keeps; None where nothing bounds these together with the weights.
        ``meter`` times single tokens."""
        self._tier, self._device, self._predictors = tier, device, predictors
        self._expert_bytes, self._check_caches, self._meter = expert_bytes, check_caches, meter
        self.unbounded = Unbounded()
        """The caches that transformers keeps."""
        self.tokens = self.count = 0
        """Tokens that went through the model, and calls of it."""
        self.scopes: Scopes | None = None
        """Where each thread is. Set when the model is attached."""
        self.leased: Leases = {}
        """Streamed modules, with what keeps their weights in memory for several calls."""
        self.divided: Leases = {}
        """Modules that a long prompt passes in parts, likewise."""
        self._named: tuple[weakref.ref[Callable[..., Any]], tuple[str, ...]] | None = None
        self._lock = threading.Lock()
        self._forked = False
        leave_at_fork(self)

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent."""
        self._forked = True

    def run(
        self, model: nn.Module, scopes: Scopes, around: Around, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """``original``, the forward of ``model``, inside of ``around``. Raises Closed, DeviceFull and what it raises,
        and Forked in a child of the process that has loaded the model."""
        if scopes.shared and not _inside.get():
            return self._run_strand(model, around, original, *args, **kwargs)
        if scopes.inside:  # a forward inside a forward of this thread
            return original(*args, **kwargs)
        if self._forked:
            raise Forked(FORKED)
        ENDING.compute_here()
        with SHIELD:
            try:
                return self._run(model, scopes, around, original, *args, **kwargs)
            finally:
                ENDING.rest()

    @calls_others
    def _run(
        self, model: nn.Module, scopes: Scopes, around: Around, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        done = 0
        self._begin()
        self._meter.begin()
        try:
            with self._current():
                out, done = self._compute(model, around, original, args, kwargs, partial(scopes.run, model))
            return out
        finally:
            self._meter.end(done)
            self._tier.bridge.end()

    @calls_others
    def _run_strand(
        self, model: nn.Module, around: Around, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The forward of one strand, inside of ``session``."""
        before = _inside.set(True)
        try:
            out, _ = self._compute(model, around, original, args, kwargs, _call)
            return out
        finally:
            _inside.reset(before)

    @calls_others
    def _compute(
        self,
        model: nn.Module,
        around: Around,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        run: Callable[..., Any],
    ) -> tuple[Any, int]:
        """The result of ``original``, called by ``run`` inside of ``around``, and the tokens that it has computed."""
        names = self._names_of(original)[: len(args)] if args else ()
        kwargs |= dict(zip(names, args, strict=False))  # ``around`` knows names
        ids = kwargs.get("input_ids")
        try:
            with around(kwargs):
                past = kwargs.get("past_key_values")
                # As they came: a forward that takes *args may look at them by number.
                first = [kwargs.pop(name) for name in names]
                with self._growing(model, past):
                    out = run(original, *first, *args[len(names) :], **kwargs)
        except ArenaClosed as error:  # what was leased, or read by row, when somebody closed the model
            raise Closed("this model was closed; load it again to use it") from error
        except torch.OutOfMemoryError as error:
            if self._device is None:
                raise
            # Without its frames, which hold what was computed until then.
            raise self._device.full(error) from error.with_traceback(None)
        done = ids.numel() if isinstance(ids, torch.Tensor) else 0
        self._note_tokens(done)
        self._note_cache(kwargs.get("past_key_values") or getattr(out, "past_key_values", None))
        return out, done

    def _names_of(self, original: Callable[..., Any]) -> tuple[str, ...]:
        """Its arguments by position: a signature takes as long as a layer's small operations."""
        if self._named is None or self._named[0]() is not original:
            self._named = weakref.ref(original), positional_names(original)  # a model that nobody has goes
        return self._named[1]

    @contextmanager
    def session(self) -> Iterator["Rounds"]:
        """In here the calling thread computes strands. Raises Closed, and Forked."""
        if self._forked:
            raise Forked(FORKED)
        scopes = self.scopes
        assert scopes is not None
        rounds = Rounds(self._begin, self._tier.bridge.end)
        ENDING.compute_here()
        try:
            with SHIELD, self._current(), torch.no_grad(), scopes.entered():
                scopes.shared = True
                yield rounds
        finally:
            scopes.shared = False
            rounds.end()
            ENDING.rest()

    def _begin(self) -> None:
        speculation = self._tier.bridge.speculation
        self._predictors.tick(price=speculation.price, read_seconds=speculation.pace * self._expert_bytes)
        self._tier.bridge.begin()

    def _current(self) -> AbstractContextManager[None]:
        """See Device.current."""
        return nullcontext() if self._device is None else self._device.device.current()

    def _growing(self, model: Any, past: object) -> AbstractContextManager[None]:
        """Around a forward with the cache ``past``, if only our attention reads it: others might sum keys that do not
        lie together in another order."""
        return growing(past) if model.config._attn_implementation == IMPLEMENTATION else nullcontext()

    def _note_tokens(self, tokens: int) -> None:
        with self._lock:
            self.count += 1
            self.tokens += tokens
        if (recorder := self._tier.bridge.recorder) is not None:
            recorder.tokens(tokens)
        if tokens > _PROMPT and self._tier.native:
            trim()

    def _note_cache(self, cache: object) -> None:
        """A forward has filled ``cache``, or none (None)."""
        size = self.unbounded.add(cache)
        if self._check_caches is not None and not self.unbounded.problem:
            self._check_caches(size, self.unbounded)


@calls_others
def _call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


class Rounds:
    """The rounds of a thread that computes strands. Each is as a forward for the planner."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end, self._running = begin, end, False

    def begin(self) -> None:
        """Begin a round. The one before has ended."""
        self.end()
        self._begin()
        self._running = True

    def end(self) -> None:
        """End the round, if there is one."""
        if self._running:
            self._running = False
            self._end()
