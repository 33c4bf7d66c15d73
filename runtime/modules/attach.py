"""Attaches a transformers model to its weights: every module finds them in memory while it runs.

No code per architecture. Pinned weights are bound once. A module whose weights are streamed gets a forward that leases
them first and gives them back after (runtime/modules/streamed.py). Experts go through runtime/experts/experts.py,
embeddings read by row through runtime/tiers/embedding_rows.py, long prompts through a layer's token-wise modules in
parts (runtime/modules/chunks.py). The outermost forward is that of runtime/modules/model_forward.py.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.policy.prefetch.predictor_choice import Predictors
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ..checkpoints.modules import is_experts, layer_of
from ..experts.coactivation import CoActivation
from ..experts.experts import IMPLEMENTATION, StreamedExperts
from ..experts.guessing import Guesses
from ..experts.tier_experts import ExpertMemory
from ..routing.router import predict_with
from ..tiers.expert_planes import stacks
from ..tiers.model_weights import ModelWeights
from ..tiers.stored_weight import StoredNumbers
from ..tiers.streamed_weight import StreamedWeight
from ..tiers.views import copy_notes, parameter, tensors_on
from .chunks import in_parts, is_divisible
from .class_forward import own_forward
from .copying import copy_plainly
from .few_rows import OnWeights, fast_weight, few_rows, few_rows_on
from .model_forward import Around, Forwards
from .rms_norm import rms_norm
from .rotary import rotary
from .row_attention import use_row_attention
from .scopes import Scopes
from .streamed import LayerLease, StreamedModule, lease_all
from .uncompiled import keep_uncompiled


def attach(
    model: nn.Module,
    weights: ModelWeights,
    experts: ExpertMemory,
    predictors: Predictors,
    forwards: Forwards,
    around: Around | None = None,
) -> None:
    """Bind the modules of ``model``, built on placeholders, to ``weights``, of which the pinned ones are loaded.

    Experts are computed in ``experts`` and guessed by ``predictors``; ``forwards`` runs the model's own forward, inside
    of ``around``.
    """
    _Attachment(model, weights, experts, predictors).attach(forwards, around or _nothing)


def _nothing(_: dict[str, Any]) -> AbstractContextManager[None]:
    return nullcontext()


class _Attachment:
    def __init__(self, model: nn.Module, weights: ModelWeights, memory: ExpertMemory, predictors: Predictors) -> None:
        self._model, self._weights, self._tier = model, weights, weights.tier
        self._memory, self._predictors = memory, predictors
        self._home = {
            spec.name: (block, spec)
            for block in weights.blocks.values()
            if block.id.kind == "dense"
            for spec in block.tensors
        }
        self._home |= {name: self._home[stored] for name, stored in weights.tied.items() if stored in self._home}
        self._experts: dict[str, list[list[Block]]] = {}
        for stack in stacks([*weights.blocks.values()]):
            self._experts.setdefault(stack[0].id.module, []).append(stack)
        self._bound: dict[str, Any] = {}
        self._stored: dict[str, StoredNumbers] = {}
        self._scopes = Scopes(weights.copies.check_whole)
        self._streamed_experts: dict[str, StreamedExperts] = {}
        self._trust: dict[Hashable, bool] = {}

    def attach(self, forwards: Forwards, around: Around) -> None:
        streamed: dict[str, StreamedModule] = {}
        for path, module in self._model.named_modules():
            if is_experts(module):
                self._attach_experts(path, module)
            if (leased := self._attach_dense(path, module)) is not None:
                streamed[path] = leased
        self._link_experts()
        if self._tier.native:
            use_row_attention(self._model)
        modules = dict(self._model.named_modules())
        self._attach_parts(modules, streamed, forwards)
        self._attach_layers(modules, streamed)
        forwards.scopes = self._scopes
        for path, leased in streamed.items():
            forwards.leased[modules[path]] = functools.partial(lease_all, [leased], self._tier.bridge, self._scopes)
        _wrap(self._model, functools.partial(forwards.run, self._model, self._scopes, around))
        for name in ("__deepcopy__", "__reduce_ex__"):  # of a whole model its class decides
            del vars(self._model)[name]
        self._bound.clear()  # the model has them; when it lets go of them, their memory goes

    def _attach_layers(self, modules: Mapping[str, nn.Module], streamed: Mapping[str, StreamedModule]) -> None:
        """Lease the weights of a layer together, and have what lies around layers know that it computes."""
        layers: dict[str, list[StreamedModule]] = {}
        around: dict[str, None] = {}
        for path, leased in streamed.items():
            layer = layer_of(path, modules)
            if layer is not None:
                layers.setdefault(layer, []).append(leased)
            parts = (layer or path).split(".")
            around |= dict.fromkeys(".".join(parts[:depth]) for depth in range(1, len(parts)))
        for path, inside in layers.items():
            _wrap(modules[path], LayerLease(modules[path], inside, self._weights, self._scopes).forward)
        for path in around:
            if not isinstance(modules[path], nn.ModuleList | nn.ModuleDict):
                _wrap(modules[path], functools.partial(self._scopes.run, modules[path]))

    def _attach_experts(self, path: str, module: nn.Module) -> None:
        experts = self._experts.get(path)
        if experts:
            self._streamed_experts[path] = StreamedExperts(module, path, experts, self._memory, self._trust)
            cast(Any, module.config)._experts_implementation = IMPLEMENTATION
            copy_plainly(module)

    def _link_experts(self) -> None:
        """Tell the experts of each layer of those of the next layer."""
        for path, after in pairwise(self._streamed_experts):
            experts = self._streamed_experts[after]
            co_activation = CoActivation(len(self._experts[path]), len(self._experts[after]))
            router = predict_with(self._model, after)
            guesses = Guesses(self._predictors, router, co_activation, experts.blocks.missing)
            self._streamed_experts[path].link(experts, guesses)

    def _attach_dense(self, path: str, module: nn.Module) -> StreamedModule | None:
        """Bind or stream the module's own weights. Returns the module as a streamed one, if any of them is."""
        on_weights: OnWeights | None = None
        if self._tier.native:
            on_weights = few_rows_on(module)
            original = own_forward(module)
            fast = few_rows(module, original) or rms_norm(module, original) or rotary(module, original)
            if fast is not None:
                _give(module, fast)
        streamed: dict[Block, dict[str, TensorSpec]] = {}
        stored: dict[str, StreamedWeight] = {}
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in holders:
            for name in list(own):
                block, spec = self._home.get(f"{path}.{name}" if path else name, (None, None))
                if block is None or spec is None:
                    continue
                if block.id in self._weights.pinned:
                    own[name] = self._pinned(module, block, spec, own[name])
                    if isinstance(own[name], PackedWeight):
                        self._numbers(block, spec, own[name]).lives_in(own, name)
                else:
                    streamed.setdefault(block, {})[name] = spec
                    stored[name] = self._numbers(block, spec, own[name]).weight
        if not streamed:
            return None
        readers = [self._weights.rows[block.id] for block in streamed if block.id in self._weights.rows]
        by_row = bool(readers) and isinstance(module, nn.Embedding)
        leased = StreamedModule(module, streamed, stored, self._tier, self._scopes, on_weights)
        for name, weight in stored.items():
            self._stored[weight.numbers.name].lives_in(module._parameters, name)
        _wrap(module, functools.partial(leased.forward_by_row, readers[0]) if by_row else leased.forward)
        return leased

    def _attach_parts(
        self, modules: Mapping[str, nn.Module], streamed: Mapping[str, StreamedModule], forwards: Forwards
    ) -> None:
        """Have long prompts pass in parts through those modules of layers whose weights can be in memory together.

        On a device they go as a whole: the trials of parts hold for the CPU."""
        if not self._tier.native:
            return
        sizes = {id_: self._weights.blocks[id_].extent.length for id_ in self._tier.placement.streamed}
        room = self._tier.placement.stream_region_bytes
        for path, module in modules.items():
            if layer_of(path, modules) in (None, path) or not is_divisible(module):
                continue
            inside = [leased for name, leased in streamed.items() if name.startswith(f"{path}.")]
            if sum(sizes.get(block, 0) for leased in inside for block in leased.blocks) <= room:
                held = functools.partial(lease_all, inside, self._tier.bridge, self._scopes)
                _give(module, in_parts(module, own_forward(module), held))
                forwards.divided[module] = held

    def _pinned(self, module: nn.Module, block: Block, spec: TensorSpec, bare: torch.Tensor) -> torch.Tensor:
        """The tensor that replaces ``bare``, the same for every module that shares it."""
        if spec.name not in self._bound:
            (tensor,) = tensors_on(self._tier.arena, [((spec,), self._weights.pinned[block.id])])
            # torch's own modules have a fast forward where they need one; every look at a fast weight costs a call.
            fast = self._tier.native and spec.packing is None and not isinstance(module, nn.Linear | nn.Embedding)
            made = fast_weight if fast else parameter
            bound = made(tensor, bare.requires_grad) if isinstance(bare, nn.Parameter) else tensor
            copy_notes(bare, bound)
            if isinstance(bound, PackedWeight):
                bound.stand_in = self._numbers(block, spec, bare).weight
            self._bound[spec.name] = bound
        return cast(torch.Tensor, self._bound[spec.name])

    def _numbers(self, block: Block, spec: TensorSpec, bare: torch.Tensor) -> StoredNumbers:
        """The numbers of ``spec``, the same for every module that shares it."""
        if spec.name not in self._stored:
            self._stored[spec.name] = StoredNumbers(block, spec, self._weights, bare)
        return self._stored[spec.name]


def _wrap(module: nn.Module, around: Callable[..., Any]) -> None:
    """Give ``module`` the forward ``around``, which is called with its own forward first."""
    original = own_forward(module)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    _give(module, forward)


def _give(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Have ``module`` compute by ``forward``, which belongs to it alone."""
    module.forward = forward
    keep_uncompiled(forward)
    copy_plainly(module)
