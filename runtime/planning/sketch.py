"""A sketch of a model on this machine before anything is packed: its blocks, and the drives that they lie on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ...kernels.devices.base import Device
from ...tiering.errors import BundleError
from ...tiering.planner.arrangement import MemoryBudgets, Outline, typical_block
from ...tiering.policy.drive_reading import Reading
from ...tiering.policy.lessons import Run, refutes_drive
from ...tiering.sim.devices import Drive
from ...tiering.store.bundle import manifest
from ...tiering.store.bundle.folder import bundles_in
from ...tiering.store.bundle.manifest_file import read_manifest
from ..checkpoints.describe import describe
from ..checkpoints.layout import Layout
from ..checkpoints.meta_model import build_meta_model
from ..checkpoints.weights import SourceFormat
from ..config.config import Config
from ..config.settings import Io
from ..config.values import EXACT_FORMATS
from ..forecasting.exact import ExactChoice
from ..loading.exact_choice import compare_exact, deal_by
from ..loading.opening import ModelSource, find_bundles, is_bundle, open_checkpoint, read_config
from ..loading.outline import layout_of, outline_model
from ..loading.placeholder_model import build_bare
from ..loading.stored_layout import check_stored
from ..machine.drive_rates_file import DriveRates
from ..machine.drives import modelled, places_of
from ..packing.arrange.arrange import estimate
from ..packing.arrange.formats import Rules
from ..packing.arrange.stripes import stripe
from ..packing.rules import named_rules


@dataclass(frozen=True, slots=True)
class ModelSketch:
    """A ``model`` without weights, the ``layout`` of its bundle, dealt to ``drives`` drives, and the ``bundle`` that it
    is packed into already; with which ``quality`` its experts are to be computed. ``exact`` is the choice between the
    exact formats, where settings ask for one of them and a checkpoint can be packed in either."""

    model: PreTrainedModel
    layout: Layout
    bundle: Path | None
    quality: str
    drives: int = 1
    exact: ExactChoice | None = None

    def outline(self) -> Outline:
        """What of it moves between tiers."""
        return outline_model(self.model, self.layout, self.quality, self.drives)


@dataclass(frozen=True, slots=True)
class PlannedDrives:
    """The drives of a bundle, read as ``reading`` says; ``shares`` are the bytes that each has or will have, in any
    unit, and ``bytes_per_second`` what they deliver together while each delivers its share. ``measured`` are the
    measurements behind that."""

    models: Sequence[Drive]
    reading: Reading
    shares: Sequence[float]
    bytes_per_second: float
    measured: Sequence[DriveRates] = ()


def sketch_model(source: ModelSource, config: Config, device: Device | None = None) -> ModelSketch:
    """From the manifest of a bundle, the files of a checkpoint, or the configuration alone: of a folder without weights
    there is no more, and of a hub id no more is fetched. What is not packed yet is laid out as ``config`` wants it, to
    be computed on ``device``; where the bytes of a format depend on the numbers, they are estimated.

    Raises CheckpointError, BundleError, and ConfigError where a drive cannot be measured.
    """
    path = Path(source.model).expanduser()
    quality, trust = config.weights.quality, source.trust_remote_code
    if is_bundle(source.model):
        model, _ = build_bare(read_manifest(path), path / "model", trust)
        return _sketch_bundle(model, path, quality)
    candidates = named_rules(config.weights)
    if not path.exists() or _configuration_only(path):
        described = read_config(source.model, source)
        model = build_meta_model(described, described.dtype or torch.float32, trust_remote_code=trust)
        layout = describe(model)
        exact = _compare(model, layout, {}, config, device)
        planned = estimate(model, layout, _choose(candidates, exact), {})
        return ModelSketch(model, planned, None, quality, exact=exact)
    return _sketch_checkpoint(source, config, candidates, device)


def _compare(
    model: PreTrainedModel,
    layout: Layout,
    stored: Mapping[str, SourceFormat],
    config: Config,
    device: Device | None,
) -> ExactChoice | None:
    """The choice between the exact formats, where ``config`` asks for one of them; else None."""
    if config.weights.format not in ("auto", *EXACT_FORMATS):
        return None
    return compare_exact(model, layout, stored, config, device)


def _choose(candidates: Sequence[Rules], exact: ExactChoice | None) -> Rules:
    if len(candidates) == 1 or exact is None:
        return candidates[0]
    return next(rules for rules in candidates if rules.format == exact.format)


def _sketch_bundle(model: PreTrainedModel, bundle: Path, quality: str) -> ModelSketch:
    found = read_manifest(bundle)
    check_stored(model, found, bundle)
    return ModelSketch(model, layout_of(found), bundle, quality, len(found.drive_bytes))


def _sketch_checkpoint(
    source: ModelSource, config: Config, candidates: Sequence[Rules], device: Device | None
) -> ModelSketch:
    store, quality = config.store.path, config.weights.quality
    checkpoint = open_checkpoint(source, store)
    contents = checkpoint.read(checkpoint.describe(), 1 << 62)
    stored = contents.weights.stored()
    contents.weights.close()
    plain = describe(contents.model, {} if config.aligned else contents.addresses)
    exact = _compare(contents.model, plain, stored, config, device)
    rules = _choose(candidates, exact)
    # Only a bundle of the same shape is worth reading the checkpoint for, to see whether it is this one.
    alike = [bundle for bundle in bundles_in(store) if any(_same_shape(bundle, plain, each) for each in candidates)]
    found = find_bundles(checkpoint, store, alike)
    for bundle in [each for each in found if read_manifest(each).codec == str(rules)] or found:
        return replace(_sketch_bundle(contents.model, bundle, quality), exact=exact)
    return ModelSketch(contents.model, estimate(contents.model, plain, rules, stored), None, quality, exact=exact)


def _configuration_only(folder: Path) -> bool:
    """Whether ``folder`` has a configuration, and nothing that could be a part of a checkpoint or a bundle."""
    weights = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf")
    return (folder / "config.json").is_file() and not any(any(folder.glob(pattern)) for pattern in weights)


def _same_shape(bundle: Path, planned: Layout, rules: Rules) -> bool:
    try:
        found = read_manifest(bundle)
    except BundleError:
        return False
    return found.codec == str(rules) and {_shape(b) for b in found.blocks} >= {_shape(b) for b in planned.blocks}


def _shape(block: manifest.Block) -> tuple[object, ...]:
    return block.id, tuple((spec.name, spec.dtype, spec.shape) for spec in block.tensors)


def deal_to_drives(
    found: ModelSketch, budgets: MemoryBudgets, places: Sequence[Path], io: Io, runs: Sequence[Run] = ()
) -> tuple[ModelSketch, PlannedDrives]:
    """``found`` with its blocks on the drives that they lie on, or would be dealt to: ``places``, the store and its
    stripes; and these drives. ``budgets`` decide what is read. ``runs`` may refute the rates of a single drive.

    Raises ConfigError when one cannot be measured, BundleError when one is not there.
    """
    size = typical_block(found.outline(), budgets)
    shares: Sequence[float] = ()
    if found.bundle:
        described = read_manifest(found.bundle)
        places, shares = places_of(found.bundle, described), described.drive_bytes
    models, reading, measured = modelled(places, io, block=size)
    best = max(rate.bytes_per_second for rate in measured[0].rates)
    if len(places) == 1 and refutes_drive(runs, best, measured[0].measured.when):
        models, reading, measured = modelled(places, io, block=size, refuted=True)
    speeds = [drive.delivered(size, reading.depth) for drive in models]
    if not found.bundle:
        shares = speeds
        found = replace(found, layout=stripe(found.layout, deal_by(places, speeds)), drives=len(places))
    slowest = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return found, PlannedDrives(models, reading, shares, sum(shares) / slowest, measured)
