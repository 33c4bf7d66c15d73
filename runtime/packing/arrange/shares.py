"""How much each block of a model counts: by its place in the model, and by how often its expert is used."""

import torch
from torch import nn

from ....tiering.units import BlockId
from ...checkpoints.layout import Layout
from ...checkpoints.modules import layer_of
from ...routing.routes import Routes

OTHERWISE = 0.1
"""How much of an expert's share is that of all alike: the next text uses others than the one that was measured."""


def assumed_shares(model: nn.Module, plan: Layout, routes: Routes | None) -> dict[BlockId, float]:
    """The share of each block in ``plan`` of ``model`` where nothing was measured but, perhaps, ``routes``.

    Two modules of a layer add to what came out of the layers before, all of them alike: of layer l, from 0, each is one
    part in 2 l + 3. What is outside of layers has all, once for each of its uses.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, int] = {}
    uses = _uses(routes)
    shares = {}
    for block in plan.blocks:
        layer = layer_of(block.id.module, modules) if block.id.module else None
        if layer is None:
            names = {spec.name for spec in block.tensors}
            shares[block.id] = 1.0 + sum(stored in names for stored in plan.tied.values())
            continue
        share = 1 / (2 * layers.setdefault(layer, len(layers)) + 3)
        if block.id.kind == "expert":
            count = int(modules[block.id.module].num_experts)
            share *= expert_share(uses.get(block.id.module, torch.ones(count)), block.id.part)
        shares[block.id] = share
    return shares


def expert_share(uses: torch.Tensor, expert: int) -> float:
    """What ``expert`` has of its layer, by ``uses`` [experts], the weights of all experts in some text."""
    total = uses.sum().item()
    measured = uses[expert].item() / total if total else 1 / len(uses)
    return (1 - OTHERWISE) * measured + OTHERWISE / len(uses)


def _uses(routes: Routes | None) -> dict[str, torch.Tensor]:
    """How many tokens used each expert, by module path."""
    return {layer.path: torch.from_numpy(layer.used().sum(0)).double() for layer in routes.layers} if routes else {}
