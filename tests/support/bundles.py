"""Bundles for tests: made, and read back without the engine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from penstock.kernels.memory.arena import Arena
from penstock.kernels.weights.packed_weight import PackedWeight
from penstock.runtime.packing.pack import pack
from penstock.runtime.tiers.views import tensors_on
from penstock.tiering.events import Slot
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import MiB
from tests.support.bundle_blocks import fill


def tensors_of(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Every tensor of the bundle by state-dict name, decoded: experts stacked again, tied names included."""
    found: dict[str, torch.Tensor] = {}
    slices: dict[str, dict[int, torch.Tensor]] = {}
    for block in bundle.manifest.blocks:
        arena = Arena(block.extent.length)
        fill(bundle, [block], [arena.view(0, block.extent.length)])
        for spec in block.tensors:
            (tensor,) = tensors_on(arena, [((spec,), Slot("host", 0, block.extent.length))])
            tensor = tensor.decoded().detach() if isinstance(tensor, PackedWeight) else tensor.clone()
            if block.id.kind == "expert":
                slices.setdefault(spec.name, {})[block.id.part] = tensor
            else:
                found[spec.name] = tensor
    for name, parts in slices.items():
        found[name] = torch.stack([parts[n] for n in range(len(parts))])
    return found | {alias: found[name] for alias, name in bundle.manifest.tied.items()}


def packed(source: Path, store: Path, **options: Any) -> Bundle:
    """``source`` packed into ``store`` with 32 MiB of memory."""
    return pack(source, **{"store": store, "host_memory": 32 * MiB} | options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in ``folder`` and below."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal(bundle: Bundle, source: Path, **options: Any) -> None:
    """The bundle has exactly the weights that transformers loads from ``source``."""
    expected = AutoModelForCausalLM.from_pretrained(source, **options).state_dict()
    found = tensors_of(bundle)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def joined(pieces: Iterable[memoryview]) -> torch.Tensor:
    """uint8 [length] of all ``pieces``."""
    return torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)
