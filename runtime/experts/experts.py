"""Experts through transformers' experts interface: computed fast where that gives the same bits.

Two ways lead to the same bits. The fast one (runtime/experts/fast.py) computes experts in the order in which they
arrive. The reference (runtime/experts/reference.py) runs the module's own eager code. On its first calls every kind of
experts module is run both ways: if a single bit differs, that kind is run by the reference from then on.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ...kernels.experts.experts import Recipe
from ...kernels.products import row_parts as parts
from ...kernels.products.autocast import autocasts
from ...kernels.products.few_rows import MOST_ROWS
from ...kernels.products.row_order import ROW_ORDER
from ...tiering.store.bundle.manifest import Block
from ..tiers.views import like
from .announcing import NextLayer
from .expert_blocks import ExpertBlocks
from .fast import FastExperts, Observer, TokenCall
from .guessing import Guesses
from .host import HostExperts
from .reference import ReferenceExperts, eager_experts
from .tier_experts import ExpertMemory, TierExperts, on_slot

IMPLEMENTATION = "penstock"
"""The name under which transformers knows our experts function."""

_ATTRIBUTE = "_penstock_experts"


class StreamedExperts:
    """The experts of one module: which blocks they are and how to compute on them."""

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        stacks: Sequence[Sequence[Block]],
        memory: ExpertMemory,
        trust: dict[Hashable, bool],
    ) -> None:
        """``stacks`` in the order of flash: for each expert of the module at ``path`` its block, and those with further
        bit planes of it. They are leased and computed in ``memory``. ``trust``, shared by all modules of a model, says
        which kinds of experts the fast way computes bit for bit: whether all trials of a kind gave equal bits."""
        self._module, self.trust, self._grouped = module, trust, memory.grouped
        tier, misses, planes = memory.tier, memory.misses, memory.planes
        self.blocks = ExpertBlocks(stacks, tier.bridge)
        by_number = self.blocks.stacks
        kinds = [
            [spec for spec in stack[0].tensors if not (spec.packing and spec.packing.plane)] for stack in by_number
        ]
        names = {spec.name.removeprefix(f"{path}."): n for n, spec in enumerate(kinds[0])}
        first = "gate_up_proj" if module.has_gate else "up_proj"
        order = [names.get(name) for name in (first, f"{first}_bias", "down_proj", "down_proj_bias")]
        self._whole = order[0] is not None and order[2] is not None
        recipe = _recipe_of(module)
        self._experts = TierExperts(
            by_number, order, recipe, tier.bridge, tier.views, planes, native=tier.native, grouped=memory.grouped
        )
        self._host: HostExperts | None = None
        """The experts that are not on the device, where the CPU may compute them."""
        if misses is not None:
            on_host = TierExperts(by_number, order, recipe, misses.host, misses.views, planes, native=True)
            self._host = HostExperts(on_host, misses, {stack[0].id: stack[0].extent.length for stack in by_number})
        alike = {tuple(replace(spec, name="") for spec in specs): specs for specs in kinds}
        samples = [on_slot(tuple(map(like, specs)), order).expert for specs in alike.values()]
        self._fast = FastExperts(self.blocks, self._experts, samples, with_host=self._host is not None)
        self._reference = ReferenceExperts(module, path, names, self.blocks, self._experts, memory)
        self.guesses: Guesses | None = None
        """The guesses of which of these experts come."""
        setattr(module, _ATTRIBUTE, self)

    def link(self, after: "StreamedExperts", guesses: Guesses) -> None:
        """The layer ``after`` this one comes next; ``guesses`` say which of its experts."""
        after.guesses = guesses
        self._fast.next = NextLayer(after.blocks, guesses)

    def observe(self, observer: Observer | None) -> None:
        """Have ``observer`` told what the experts are computed on; None ends it."""
        self._fast.observer = observer

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width], ``index`` and ``weights`` [tokens, top_k] -> [tokens, width]."""
        if autocasts() or self._reference.replaced:
            return self._reference.run(hidden, index, weights)
        chosen = index.cpu()  # which experts are needed, only the host can say
        if self.guesses is not None:
            self.guesses.used(chosen)
        return self._forward(hidden, index, weights, chosen)

    def forward_several(self, calls: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """``forward`` of each of ``calls``, with the bits of each alone. Experts that several of them need are read
        once."""
        if autocasts() or self._reference.replaced or not self._is_fast(calls):
            return [self.forward(*call) for call in calls]
        tokens = [TokenCall(hidden, index.cpu(), weights) for hidden, index, weights in calls]
        if self.guesses is not None:
            self.guesses.used(torch.cat([call.chosen for call in tokens]))
        return self._fast.run_several(tokens)

    def _is_fast(self, calls: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Whether the fast way is trusted for all of ``calls``, and the CPU alone computes."""
        if not self._whole or self._host is not None:
            return False
        return self._grouped or all(self.trust.get(self._kind(hidden, len(hidden))) for hidden, *_ in calls)

    def _kind(self, hidden: torch.Tensor, rows: int) -> Hashable:
        """The key of a trial of the fast way with so many rows of ``hidden``: its bits depend on these."""
        return type(self._module), hidden.dtype, rows if rows <= MOST_ROWS else 0

    def _forward(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """``chosen`` is ``index`` in host memory."""
        if not self._whole:
            return self._reference.run(hidden, index, weights)
        if self._grouped:  # other bits are welcome
            return self._fast.run(hidden, chosen, weights, self._host)
        kind = self._kind(hidden, 1 if ROW_ORDER.alone else len(hidden))
        if ROW_ORDER.alone and len(hidden) > 1 and not self.trust.get(kind):
            tokens = zip(*(torch.split(each, 1) for each in (hidden, index, weights, chosen)), strict=True)
            return torch.cat([self._forward(*token) for token in tokens])
        trusted = self.trust.get(kind)
        if trusted is False:
            return self._reference.run(hidden, index, weights)
        few = 2 * parts.ROWS
        if trusted is None and len(hidden) > few:  # tried on a few: the eager code takes memory for all rows at once
            self._forward(hidden[:few], index[:few], weights[:few], chosen[:few])
            return self._forward(hidden, index, weights, chosen)
        if trusted:
            return self._fast.run(hidden, chosen, weights, self._host)
        experts = {expert for expert in chosen.flatten().tolist() if expert < len(self.blocks)}
        with self._experts.same_planes(experts):
            out = self._fast.run(hidden, chosen, weights, None)
            reference = self._reference.run(hidden, index, weights)
        self.trust[kind] = self.trust.get(kind, True) and torch.equal(out, reference)
        return reference


def _recipe_of(module: torch.nn.Module) -> Recipe:
    return Recipe(
        transposed=bool(module.is_transposed),
        activation=module._apply_gate if module.has_gate else module.act_fn,  # type: ignore[arg-type]
        post=module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,  # type: ignore[arg-type]
    )


def streamed_experts(module: torch.nn.Module) -> StreamedExperts | None:
    """The streamed experts of ``module``; None where it has none."""
    return getattr(module, _ATTRIBUTE, None)


def _experts_forward(
    module: torch.nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    experts = streamed_experts(module)
    if experts is None:  # a copy of such a module, with weights of its own
        return eager_experts(module, hidden, top_k_index, top_k_weights)
    return experts.forward(hidden, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
