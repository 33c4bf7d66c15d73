"""Whether a bundle holds what a model needs: every weight once, with its planes, in a format that can store it."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ...kernels.formats.checks import check_dtype, check_lengths, find_format
from ...tiering.errors import BundleCorrupt, BundleError
from ...tiering.store.bundle.manifest import Block, Manifest, TensorSpec, join_planes
from ...tiering.units import BlockId
from ..checkpoints.describe import describe
from ..checkpoints.model_class import is_wrapped
from ..checkpoints.modules import is_product, is_transposed
from ..config.values import FIT


def check_stored(model: PreTrainedModel, manifest: Manifest, folder: Path) -> None:
    """Check that ``manifest``, of the bundle in ``folder``, has every block that ``model``, which may be on the meta
    device, needs, and no other.

    Raises BundleError, which names a block, for other weights than this version of transformers builds, and
    BundleCorrupt for weights that are stored as no packing stores them.
    """
    expected, found = describe(model), manifest.blocks
    different = {_content(block) for block in expected.blocks} ^ {
        _content(block) for block in found if block.id.kind != "residual"
    }
    if different:
        raise _otherwise(model, folder, f"block {min(different, key=str)[0]}")
    if expected.tied != manifest.tied:
        raise _otherwise(model, folder, f"tied weight {min(expected.tied.items() ^ manifest.tied.items())[0]}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for planes in join_planes(found):
        block, spec = planes[0]
        if spec.packing is None:
            continue
        try:
            _check_planes(planes, modules, fewer=manifest.codec.startswith(FIT))
        except ValueError as error:
            raise BundleCorrupt(
                f"{folder} has block {block.id} with tensor {spec.name} as no packing stores it ({error}); "
                "delete the bundle and pack again"
            ) from error


def _otherwise(model: PreTrainedModel, folder: Path, what: str) -> BundleError:
    if is_wrapped(folder / "model"):
        return BundleError(
            f"{folder} holds the weights of a wrapped {type(model).__name__} that had other modules than "
            f"transformers builds ({what} differs); build the model and wrap it again"
        )
    return BundleError(
        f"{folder} was packed with another version of transformers or penstock ({what} differs); "
        "delete the bundle and pack again"
    )


def _content(block: Block) -> tuple[BlockId, bool, tuple[tuple[str, str, tuple[int, ...]], ...]]:
    return block.id, block.resident, tuple((spec.name, spec.dtype, spec.shape) for spec in block.tensors)


def _check_planes(planes: list[tuple[Block, TensorSpec]], modules: dict[str, nn.Module], *, fewer: bool) -> None:
    """Raise ValueError, with the reason, unless ``planes`` are those of one matrix; ``fewer`` may be there than the
    format has."""
    block, spec = planes[0]
    packing, module = spec.packing, modules.get(block.id.module)
    assert packing is not None
    format_ = find_format(packing.format)
    if module is None or not is_product(module, spec.name, getattr(torch, spec.dtype)):
        raise ValueError("only weights of products are encoded")
    if packing.transposed != is_transposed(module):
        raise ValueError("the wrong side of the matrix is encoded")
    check_dtype(format_.name, spec.dtype)
    if len(planes) != format_.planes and not (fewer and len(planes) < format_.planes):
        raise ValueError(f"{len(planes)} of the {format_.planes} planes of {format_.name} are there")
    check_lengths(format_.name, *spec.encoded_shape, [plane.length for _, plane in planes])
