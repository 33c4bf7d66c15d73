"""What a MODEL argument will be like on this machine before anything is packed: its blocks, and its drives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...tiering.errors import BundleError
from ...tiering.policy.placement.placement import Placement
from ...tiering.policy.reads import Reading, streamed_lengths, typical_read
from ...tiering.sim.devices import Drive
from ...tiering.store.bundle import manifest
from ..config.settings import Io
from ..machine.drives import modelled, places_of
from ..tiers.expert_planes import units
from .opening import bundles_of, is_bundle, open_checkpoint, read_config, read_manifest
from .options import Source

if TYPE_CHECKING:
    from ..checkpoints.layout import Layout
    from ..loading.arrangement import Outline
    from ..packing.arrange.formats import Rules


@dataclass(frozen=True, slots=True)
class Sketch:
    """A ``model`` without weights, the ``layout`` of its bundle, and the ``bundle`` that it is packed into already;
    with which ``quality`` its experts are to be computed."""

    model: Any
    layout: "Layout"
    bundle: Path | None
    quality: str

    @property
    def outline(self) -> "Outline":
        from ..loading.arrangement import Outline

        return Outline.of(self.model, replace(self.layout, blocks=units(self.layout.blocks, self.quality)))


@dataclass(frozen=True, slots=True)
class Drives:
    """The drives of a bundle, read as ``reading`` says; ``shares`` are the bytes that each has or will have, in any
    unit, and ``bytes_per_second`` what they deliver together while each delivers its share."""

    models: Sequence[Drive]
    reading: Reading
    shares: Sequence[float]
    bytes_per_second: float


def sketch(source: Source, store: Path, rules: "Rules", quality: str) -> Sketch:
    """From the manifest of a bundle, the files of a checkpoint, or the configuration alone: of a folder without weights
    there is no more, and of a hub id no more is fetched. What is not packed yet is laid out by ``rules``; where the
    bytes of a format depend on the numbers, they are estimated."""
    import torch

    from ..checkpoints.describe import describe
    from ..checkpoints.layout import Layout
    from ..checkpoints.meta_model import build_meta_model
    from ..packing.arrange.arrange import estimate

    path = Path(source.model).expanduser()
    trust = source.trust_remote_code
    if is_bundle(source.model):
        found = read_manifest(path)
        config = read_config(str(path / "model"), source)
        model = build_meta_model(config, getattr(torch, found.dtype), trust_remote_code=trust)
        drives = tuple(file.drive for file in found.files)
        return Sketch(model, Layout(found.blocks, found.tied, drives), path, quality)
    if not path.exists() or _configuration_only(path):
        config = read_config(source.model, source)
        model = build_meta_model(config, config.dtype or torch.float32, trust_remote_code=trust)
        return Sketch(model, estimate(model, describe(model), rules, {}), None, quality)
    checkpoint = open_checkpoint(source)
    contents = checkpoint.read(checkpoint.describe(), 1 << 62)
    contents.weights.close()
    unencoded = describe(contents.model, contents.addresses)
    planned = estimate(contents.model, unencoded, rules, contents.weights.stored())
    # Only a bundle of the same shape is worth reading the checkpoint for, to see whether it is this one.
    alike = [file.parent for file in store.glob("*/manifest.json") if _same_shape(file.parent, unencoded, rules)]
    return Sketch(contents.model, planned, next(iter(bundles_of(checkpoint, store, alike)), None), quality)


def _configuration_only(folder: Path) -> bool:
    """Whether ``folder`` has a configuration, and nothing that could be a part of a checkpoint or a bundle."""
    weights = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf")
    return (folder / "config.json").is_file() and not any(any(folder.glob(pattern)) for pattern in weights)


def _same_shape(bundle: Path, planned: "Layout", rules: "Rules") -> bool:
    try:
        found = read_manifest(bundle)
    except BundleError:
        return False
    return found.codec == str(rules) and {_content(b) for b in found.blocks} >= {_content(b) for b in planned.blocks}


def _content(block: manifest.Block) -> tuple[Any, ...]:
    return block.id, tuple((spec.name, spec.dtype, spec.shape) for spec in block.tensors)


def drives_of(found: Sketch, placement: Placement, places: Sequence[Path], io: Io) -> tuple[Sketch, Drives]:
    """``found`` with its blocks on the drives that they lie on, or would be dealt to: ``places``, the store and its
    stripes; and these drives. ``placement`` says what is read.

    Raises ConfigError when one cannot be measured, BundleError when one is not there.
    """
    from ..packing.arrange.stripes import stripe

    size = typical_read(streamed_lengths(found.outline.blocks, placement))
    shares: Sequence[float] = ()
    if found.bundle:
        described = read_manifest(found.bundle)
        places, shares = places_of(found.bundle, described), described.drive_bytes
    models, reading = modelled(places, io, block=size)
    speeds = [drive.delivered(size, reading.depth) for drive in models]
    if not found.bundle:
        shares = speeds
        dealt = [manifest.Drive(str(place), max(1, round(speed))) for place, speed in zip(places, speeds, strict=True)]
        found = replace(found, layout=stripe(found.layout, dealt if len(places) > 1 else ()))
    slowest = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return found, Drives(models, reading, shares, sum(shares) / slowest)
