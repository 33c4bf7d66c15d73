"""What a checksum cannot tell of a bundle from elsewhere: whether it holds what its model needs, and numbers at all."""

import torch

from ...kernels.formats.deep import find_deep_fault
from ...kernels.memory.arena import Arena
from ...tiering.errors import BundleCorrupt
from ...tiering.progress import Progress, Quiet
from ...tiering.store.bundle.manifest import Block, TensorSpec, join_planes
from ...tiering.store.bundle.reader import Bundle
from ...tiering.units import PAGE, MiB, align_up
from .placeholder_model import build_bare
from .stored_layout import check_stored

_STEP = 4 * MiB


def check_deep(
    bundle: Bundle, *, trust_remote_code: bool = False, progress: Progress | None = None
) -> list[BundleCorrupt]:
    """Decode all of ``bundle``, whose checksums are right. Returns what is wrong, in the order of blocks.

    It takes as much memory as the largest matrix is stored in. Raises BundleError where it does not hold what its model
    needs, CheckpointError where that model cannot be built, and ReadError.
    """
    progress = progress or Quiet()
    blocks = bundle.manifest.blocks
    model, _ = build_bare(bundle.manifest, bundle.model_folder, trust_remote_code)
    check_stored(model, bundle.manifest, bundle.folder)
    buffers = {name for name, _ in model.named_buffers()}  # a mask may well hold infinities
    found: list[BundleCorrupt] = []
    progress.start("decoding", sum(block.extent.length for block in blocks))
    for places in join_planes(blocks):
        block, spec = places[0]
        planes = [_read(bundle, at, plane) for at, plane in places]
        fault = _fault(spec, planes, may_be_infinite=spec.name in buffers)
        if fault is not None:
            found.append(bundle.corrupt(block, f"holds no numbers in {spec.name}: {fault}"))
        progress.advance(sum(len(plane) for plane in planes))
    progress.finish()
    return found


def _read(bundle: Bundle, block: Block, spec: TensorSpec) -> torch.Tensor:
    """The bytes of ``spec``, uint8 [length]."""
    if not spec.length:
        return torch.empty(0, dtype=torch.uint8)
    page, start = divmod(spec.offset, PAGE)
    arena = Arena(align_up(start + spec.length), huge_pages=False)
    for at in range(0, arena.length, _STEP):
        bundle.read_rows(block, page + at // PAGE, arena.view(at, min(_STEP, arena.length - at)))
    return arena.tensor(start, torch.uint8, (spec.length,))


def _fault(spec: TensorSpec, planes: list[torch.Tensor], *, may_be_infinite: bool) -> str | None:
    if spec.packing is not None:
        return find_deep_fault(spec.packing.format, spec.dtype, *spec.encoded_shape, planes)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    for piece in torch.split(planes[0].view(dtype), _STEP):
        numbers = piece if piece.element_size() > 1 else piece.float()
        if bool((numbers.isnan() if may_be_infinite else ~numbers.isfinite()).any()):
            return "not all of them are finite"
    return None
