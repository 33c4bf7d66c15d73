"""The outline of a model: its blocks, and how a token uses them. No weight is read for it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import prod

import torch
from torch import nn

from ...kernels.formats.registry import FORMATS
from ...tiering.planner.arrangement import ExpertLayer, Outline
from ...tiering.policy.placement.placement import SizedBlock
from ...tiering.store.bundle.manifest import Block, Manifest
from ...tiering.units import BlockId
from ..checkpoints.layout import Layout
from ..routing.router import router_of
from ..routing.top_k import experts_per_token
from ..tiers.embedding_rows import row_readable
from ..tiers.expert_planes import FULL, units


def layout_of(manifest: Manifest) -> Layout:
    """The layout of a written bundle, from its ``manifest``."""
    return Layout(manifest.blocks, manifest.tied, tuple(file.drive for file in manifest.files))


def outline_model(model: nn.Module, layout: Layout, quality: str = FULL, drives: int = 1) -> Outline:
    """Outline ``model``, which may be on the meta device, with its ``layout``, dealt to ``drives`` drives, some of
    which may have no block. ``quality`` says which planes of its experts are read."""
    layout = replace(layout, blocks=units(layout.blocks, quality))
    per_token = experts_per_token(model)
    lengths: dict[str, list[int]] = {}
    for block in layout.blocks:
        if block.id.kind == "expert":
            lengths.setdefault(block.id.module, []).append(block.extent.length)
    return Outline(
        blocks=tuple(
            SizedBlock(block.id, block.extent.length, block.resident, layout.drive_of(block)) for block in layout.blocks
        ),
        extents=tuple(block.extent for block in layout.blocks),
        drives=max(drives, max(layout.drives, default=0) + 1),
        embeddings=_embeddings(model, layout.blocks, layout.tied),
        scratch=_scratch_bytes(layout.blocks),
        formats=frozenset(spec.packing.format for b in layout.blocks for spec in b.tensors if spec.packing),
        quality=quality,
        layers=tuple(
            ExpertLayer(path, len(bytes_), per_token.get(path) or len(bytes_), sum(bytes_))
            for path, bytes_ in lengths.items()
        ),
        guessed=any(per_token.get(path) is None for path in lengths),
        foreseen=any(router_of(model, after) is not None for _, after in pairwise(lengths)),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _embeddings(model: nn.Module, blocks: Iterable[Block], tied: Mapping[str, str]) -> dict[BlockId, bool]:
    """Blocks that an embedding can read by row, and whether nothing else uses them."""
    shared = set(tied.values())
    alone: dict[BlockId, bool] = {}
    for block in blocks:
        if block.id.kind == "dense" and not block.resident and len(block.tensors) == 1:
            if block.tensors[0].packing is not None:
                continue  # its rows cannot be read one by one
            name = block.tensors[0].name
            if name == f"{block.id.module}.weight" and row_readable(model.get_submodule(block.id.module)):
                alone[block.id] = name not in shared
    return alone


def _scratch_bytes(blocks: Iterable[Block]) -> int:
    """Bytes that decoding takes: the largest matrix in an exact format is decoded as a whole."""
    specs = (spec for block in blocks for spec in block.tensors)
    whole = (spec for spec in specs if spec.packing is not None and FORMATS[spec.packing.format].exact)
    return max((prod(spec.shape) * getattr(torch, spec.dtype).itemsize for spec in whole), default=0)
