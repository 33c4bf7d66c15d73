"""What a bundle holds, read back without the engine."""

import torch

from penstock.kernels.arena import Arena
from penstock.tiering.store.reader import Bundle


def tensors_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Every tensor of the bundle by state-dict name: experts stacked again, tied names included."""
    found: dict[str, torch.Tensor] = {}
    slices: dict[str, dict[int, torch.Tensor]] = {}
    for block in bundle.manifest.blocks:
        arena = Arena(block.extent.length)
        bundle.read([block], [arena.view(0, block.extent.length)])
        for spec in block.tensors:
            tensor = arena.tensor(spec.offset, getattr(torch, spec.dtype), spec.shape).clone()
            if block.id.kind == "expert":
                slices.setdefault(spec.name, {})[block.id.part] = tensor
            else:
                found[spec.name] = tensor
    for name, parts in slices.items():
        found[name] = torch.stack([parts[n] for n in range(len(parts))])
    return found | {alias: found[name] for alias, name in bundle.manifest.tied.items()}
