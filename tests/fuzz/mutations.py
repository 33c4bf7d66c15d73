"""Faults that Penstock once had, put back on purpose, each with a case that finds it.

There is none of prompt lookup and assisted decoding: their several rows at once are said, not mended.
"""

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch._C._dynamo import eval_frame
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penstock.kernels.process import forks, interrupts
from penstock.kernels.products import weighted_sum
from penstock.runtime.checkpoints import model_class
from penstock.runtime.checkpoints.files import weights_files
from penstock.runtime.checkpoints.quantisation import fp8_layouts
from penstock.runtime.kv import adapter
from penstock.runtime.kv.views.paged_tensors import PagedTensor
from penstock.runtime.loading import install
from penstock.runtime.loading import load as loading
from penstock.runtime.modules import uncompiled
from penstock.runtime.modules.model_forward import Forwards
from penstock.runtime.packing import pack as packing
from penstock.runtime.prefixes.identity.live_identity import LiveIdentity
from penstock.runtime.tiers import streamed_weight
from penstock.runtime.tiers.stored_weight import ChangeableNumbers, StoredNumbers
from penstock.runtime.tiers.views import SlotViews
from penstock.tiering.errors import CheckpointError, PenstockError

from .steps import processes

Patch = pytest.MonkeyPatch


class Mutation(NamedTuple):
    """``put_back`` brings the fault back. ``case``, a line of JSON, finds it: what it gives is wrong, or is refused."""

    put_back: Callable[[Patch], None]
    case: str


def _replace(patch: Patch, old: Any, new: Any) -> None:
    """Put ``new`` wherever a module of Penstock has ``old``."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("penstock."):
            for attribute in [key for key, value in vars(module).items() if value is old]:
                patch.setattr(module, attribute, new)


def one_tensor_shows_many_weights(patch: Patch) -> None:
    """A parameter belongs to a slot, and torch remembers casts of it."""
    real = SlotViews.on
    patch.setattr(SlotViews, "on", lambda self, *slots, of=None: real(self, *slots))

    @contextmanager
    def remembering() -> Iterator[None]:
        with torch.no_grad():
            yield

    _replace(patch, streamed_weight.forgetting, remembering)


def weights_are_placeholders(patch: Patch) -> None:
    """Outside of its module's forward a weight has no numbers."""

    @contextmanager
    def leased(self: StoredNumbers, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        yield torch.full(tuple(self.weight.shape), torch.nan, dtype=self.weight.dtype)

    patch.setattr(StoredNumbers, "leased", leased)


def changes_are_lost(patch: Patch) -> None:
    """Users change a copy that no module computes with."""
    real = StoredNumbers.leased

    @contextmanager
    def leased(self: StoredNumbers, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        with real(self, rows) as numbers:
            yield numbers.clone()

    patch.setattr(StoredNumbers, "leased", leased)
    patch.setattr(ChangeableNumbers, "own", lambda self: None)


def the_identity_is_that_of_the_beginning(patch: Patch) -> None:
    """Prompts are stored and found under what the model was when it was loaded."""
    real, first = LiveIdentity.describe, weakref.WeakKeyDictionary[LiveIdentity, Any]()
    patch.setattr(LiveIdentity, "describe", lambda self: first.setdefault(self, real(self)))


def towers_attend_as_decoders(patch: Patch) -> None:
    """Every attention of the model goes by pages, and without a mask it is causal."""

    def find_all(model: Any, decoder: Any) -> list[Any]:
        found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        return [*found.values()]

    real = ALL_ATTENTION_FUNCTIONS[adapter.EAGER]

    def causal(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        if mask is None and not isinstance(key, PagedTensor):
            mask = torch.full((query.shape[2], key.shape[2]), torch.finfo(query.dtype).min).triu(1).to(query.dtype)
        return real(module, query, key, value, mask, **options)

    patch.setattr(adapter, "_find_decoders", find_all)
    patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, adapter.EAGER, causal)


def scales_are_not_used(patch: Patch) -> None:
    """FP8 weights are computed without their scales."""
    patch.setattr(fp8_layouts, "_values", lambda scales: torch.ones_like(scales, dtype=torch.float32))


def small_files_are_those_of_the_bundle(patch: Patch) -> None:
    """What changes beside the weights in the checkpoint is not seen."""
    real = loading.bare_model
    patch.setattr(loading, "bare_model", lambda bundle, trusted, options, source=None: real(bundle, trusted, options))
    patch.setattr(packing, "refresh_model_folder", lambda *_: True)


def an_assert_stands_for_an_old_processor(patch: Patch) -> None:
    """Experts in bfloat16 ask for instructions that are not there."""

    def assert_(*_: Any) -> None:
        assert weighted_sum.KERNELS is not None

    _replace(patch, weighted_sum.sum_weighted, assert_)
    _replace(patch, weighted_sum.add_weighted, assert_)


def arguments_go_by_the_names_in_a_signature(patch: Patch) -> None:
    """A forward that takes ``*args`` has an argument called args."""
    real = Forwards._run

    def run(self: Forwards, scopes: Any, around: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(inspect.signature(original).parameters, args, strict=False))
        return real(self, scopes, around, original, **named, **kwargs)

    patch.setattr(Forwards, "_run", run)


def adapters_are_refused(patch: Patch) -> None:
    """Adapter libraries look at the state dict, which needs all weights."""

    def refuse(self: Any, *_: Any, **__: Any) -> Any:
        raise PenstockError("the weights are not in memory as a whole")

    real = install.streamed_class

    def without_state(base: type[Any]) -> type[Any]:
        made = real(base)
        made.state_dict = refuse
        return made

    patch.setattr(install, "streamed_class", without_state)


def children_wait_for_threads_of_their_parent(patch: Patch) -> None:
    """Nothing is told that the process was forked."""
    patch.setattr(forks, "_inherited", weakref.WeakSet[Any]())
    _replace(patch, forks.leave_at_fork, lambda one: None)
    patch.setattr(processes, "LONGEST", 3.0)


def an_index_is_to_be_fulfilled(patch: Patch) -> None:
    """Each tensor that an index names must be there, needed or not."""
    real = weights_files.read_index

    def strict(index: Path) -> dict[str, str]:
        found = real(index)
        for name in found:
            if name.startswith("mtp."):
                raise CheckpointError(f"{index} names {name}, which is in no file")
        return found

    _replace(patch, weights_files.read_index, strict)


def signals_pass_anywhere(patch: Patch) -> None:
    """Ctrl-C ends the planner's work half done."""
    patch.setattr(interrupts, "may_pass", lambda frame: True)


def the_class_of_a_bundle_is_that_of_its_type(patch: Patch) -> None:
    """The bundle of a wrapped classifier is opened as a language model."""
    patch.setattr(model_class, "is_wrapped", lambda folder: False)


def forwards_are_compiled(patch: Patch) -> None:
    """A compiled graph keeps the weights that it saw."""
    action = eval_frame._FrameAction.DEFAULT

    def compile_too(forward: Any) -> None:
        eval_frame.set_code_exec_strategy(forward.__code__, eval_frame._FrameExecStrategy(action, action))

    _replace(patch, uncompiled.keep_uncompiled, compile_too)


MUTATIONS = {
    "one tensor for many weights": Mutation(
        one_tensor_shows_many_weights,
        '{"model": {}, "settings": {}, "steps": [["Forward", {"context": "autocast, no_grad"}]]}',
    ),
    "placeholders": Mutation(
        weights_are_placeholders,
        '{"model": {"shape": "untied"}, "settings": {}, "steps": [["ReadOne", {"which": 3}]]}',
    ),
    "changes": Mutation(
        changes_are_lost,
        '{"model": {"shape": "deep"}, "settings": {}, '
        '"steps": [["ChangeWeight", {"how": "in place", "which": 3}], ["Forward", {}], ["Forward", {}]]}',
    ),
    "identity": Mutation(
        the_identity_is_that_of_the_beginning,
        '{"model": {}, "settings": {"prefix": true}, "steps": [["GenerateOften", {"tokens": 70}], '
        '["ChangeAttribute", {"what": "scaling"}], ["GenerateOften", {"tokens": 70}]]}',
    ),
    "towers": Mutation(
        towers_attend_as_decoders,
        '{"model": {"architecture": "gemma3"}, "settings": {"kv": "2MiB", "budget": "default"}, '
        '"steps": [["Forward", {"image": true}]]}',
    ),
    "own code": Mutation(
        arguments_go_by_the_names_in_a_signature,
        '{"model": {"written": "own code"}, "settings": {}, "steps": [["Gradient", {"of": "freeze"}], '
        '["Interrupt", {"where": "hook", "after": 1000}], ["Forward", {}]]}',
    ),
    "adapters": Mutation(
        adapters_are_refused,
        '{"model": {}, "settings": {}, "steps": [["AddAdapter", {"way": "from_pretrained"}]]}',
    ),
    "fork": Mutation(
        children_wait_for_threads_of_their_parent,
        '{"model": {}, "settings": {}, "steps": [["Fork", {"work": "loader"}], ["Fork", {"work": "forward"}], '
        '["Forward", {}]]}',
    ),
    "spare entry": Mutation(
        an_index_is_to_be_fulfilled,
        '{"model": {"architecture": "wide llama", "written": "spare entry"}, "settings": {}, '
        '"steps": [["Forward", {}]]}',
    ),
    "interrupts": Mutation(
        signals_pass_anywhere,
        '{"model": {}, "settings": {}, "steps": [["Interrupt", {"where": "lines", "after": 0}], ["Forward", {}]]}',
    ),
    "classifier": Mutation(
        the_class_of_a_bundle_is_that_of_its_type,
        '{"model": {"head": "classifier"}, "settings": {"opened": "bundle"}, "steps": [["Forward", {}]]}',
    ),
    "compile": Mutation(
        forwards_are_compiled,
        '{"model": {}, "settings": {}, "steps": [["Compile", {"backend": "eager"}]]}',
    ),
    "scales": Mutation(
        scales_are_not_used,
        '{"model": {"dtype": "bfloat16", "quantised": "fp8.weight_scale tensor"}, "settings": {}, '
        '"steps": [["Forward", {}]]}',
    ),
    "small files": Mutation(
        small_files_are_those_of_the_bundle,
        '{"model": {}, "settings": {}, "steps": [["EditFiles", {}]]}',
    ),
    "old processor": Mutation(
        an_assert_stands_for_an_old_processor,
        '{"model": {"architecture": "mixtral", "dtype": "bfloat16"}, "settings": {"processor": "old"}, '
        '"steps": [["Forward", {"rows": 2}]]}',
    ),
}
