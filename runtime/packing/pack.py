"""Pack a checkpoint, or a model in memory, into a bundle: open, describe, arrange, stream, write.

Each stage gives a value to the next one: a ``Source`` (checkpoints/open.py), a ``Description``
(checkpoints/describe.py), an ``Arranged`` (arrange/arrange.py), blocks with their bytes (stream/blocks.py), a
``Bundle`` (write.py). Kinds of checkpoints differ only in the first stage. Packing works within a memory budget,
continues where an interrupted packing stopped, and is done once.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...kernels.closing import closed_on_error
from ...kernels.machine.machine import count_usable_cores
from ...tiering.errors import BudgetTooSmall
from ...tiering.progress import Progress, Quiet
from ...tiering.store.bundle.folder import PARTIAL, locked, prepare
from ...tiering.store.bundle.gone import told_when_gone
from ...tiering.store.bundle.manifest import Manifest
from ...tiering.store.bundle.origin import note_use
from ...tiering.store.bundle.reader import Bundle
from ...tiering.store.bundle.stripes import prepare_stripes, sweep
from ...tiering.store.bundle.writer import BundleWriter, publish
from ...tiering.units import KiB, MiB, align_up
from ..checkpoints.describe import Description, describe
from ..checkpoints.files.kept_conversion import is_kept, note_kept
from ..checkpoints.files.model_files import refresh_model_folder
from ..checkpoints.layout import Layout
from ..checkpoints.open import open_source
from ..checkpoints.source import Source, SourceContents
from ..checkpoints.weights_note import write_note
from ..machine.drives import drives_for
from ..routing.profiling import experts_of
from ..routing.routes import Routes
from .arrange.arrange import Arranged, arrange
from .arrange.expert_order import order_experts
from .arrange.formats import Rules
from .arrange.shares import assumed_shares
from .arrange.stripes import stripe
from .measure.calibration import NOTHING, Calibration, Calibrator
from .measure.lengths import KeptLengths
from .measure.measurements import Measurements
from .rules import ExactRules
from .stream.aside import Aside
from .stream.encoding import EncodedWeights
from .stream.scratch_file import ScratchFile
from .stream.threads import one_torch_thread
from .target import Target, find_target
from .write import check_room, write_bundle

LEAST_MEMORY = 4 * MiB
"""Bytes that packing may use at any budget. Less would only make it slow."""
UNBOUNDED = 1 << 62
"""The memory for packing a model that is in memory already."""

_STAGING = 8 * MiB
_MOST_ENCODED = 32 * MiB
"""Bytes. A larger encoded matrix lies in a file until it is written."""

Order = Mapping[str, Sequence[int]]
"""The order of the experts on flash by the path of their module, where it is not that of their numbers."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack, as ``pack`` takes it."""

    memory: int
    flash_limit: int | None
    rules: Rules
    stripes: Sequence[Path]
    routes: Routes | None
    calibrator: Calibrator | None
    aligned: bool
    direct: bool | None
    progress: Progress

    @property
    def staging(self) -> int:
        """Bytes of buffers for writing."""
        return min(_STAGING, align_up(max(64 * KiB, self.memory // 4)))

    def room(self, calibration: Calibration) -> int:
        """Bytes for reading and converting, beside ``calibration`` and staging."""
        return max(LEAST_MEMORY, self.memory - calibration.nbytes) - self.staging


def pack(
    source: str | Path | Source,
    *,
    store: Path,
    host_memory: int = UNBOUNDED,
    dtype: torch.dtype | None = None,
    flash_limit: int | None = None,
    rules: Rules | ExactRules | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    stripes: Sequence[Path] = (),
    routes: Routes | None = None,
    calibrator: Calibrator | None = None,
    aligned: bool = False,
    direct: bool | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Return the bundle of ``source`` in ``store``. Write it if it is not there.

    ``source`` is a folder, a GGUF file, a hub id, or what ``open_source`` or ``BuiltModel.of`` gave. Its weights are
    stored in ``dtype`` (None: its own) and in the formats of ``rules`` (as they are if not given). Where these are
    several to choose from, a bundle by one of them that is there, or begun, is taken. Packing uses at most
    ``host_memory`` bytes of memory, and all bundles together take at most ``flash_limit`` bytes. ``stripes`` are
    folders on other drives, to which blocks are dealt by measured speed.

    With ``routes``, experts that are used together lie together where that pays, and experts that are used more get
    more of a size target. A ``calibrator`` measures how much each error counts. A bundle that is there is taken as it
    is, on any drives. With neither ``routes`` nor ``calibrator``, it is also taken with any order of experts and any
    calibration. ``aligned`` is for a device. There, transformers has every weight at a multiple of TENSOR_ALIGNMENT,
    whatever its address in the checkpoint.

    Raises CheckpointError if weights are missing or misshapen, BudgetTooSmall, FlashFull, BundleError if a drive fails,
    ConfigError if a folder cannot be used, and TraceError if ``routes`` are of another model. The next call continues
    where an interrupted one stopped. KeyboardInterrupt says so.
    """
    options = PackOptions(
        memory=max(host_memory, LEAST_MEMORY),
        flash_limit=flash_limit,
        rules=rules if isinstance(rules, Rules) else Rules(),
        stripes=stripes,
        routes=routes,
        calibrator=calibrator,
        aligned=aligned,
        direct=direct,
        progress=progress or Quiet(),
    )
    if not isinstance(source, Source):
        quiet = isinstance(options.progress, Quiet)
        source = open_source(source, store=store, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)
    described = source.describe(dtype, aligned=aligned)
    order = _order_experts(source, described, routes)
    store = prepare(store, to_write=False)
    with told_when_gone(store):
        candidates = rules.candidates if isinstance(rules, ExactRules) else (options.rules,)
        targets = _find_targets(store, source, described, order, options, candidates)
        chosen = _choose_known([target.folder for target in targets])
        if chosen is None:
            assert isinstance(rules, ExactRules), "one target is always known"
            chosen = [each.format for each in candidates].index(rules.choose(source, described))
        return _open(targets[chosen], source, described, order, replace(options, rules=candidates[chosen]))


def _open(target: Target, source: Source, described: Description, order: Order, options: PackOptions) -> Bundle:
    """The bundle ``target``, written if it is not there."""
    if not Bundle.is_bundle(target.folder):
        prepare(target.folder.parent)
        with locked(target.folder):
            if not publish(target.folder):
                _pack(source, described, order, target, options)
    bundle = Bundle.open(target.folder, direct=options.direct)
    with closed_on_error(bundle):
        _refresh(bundle, source, described, target)
    note_use(bundle.folder, _origin(source))
    return bundle


def _origin(source: Source) -> str:
    """Where ``source`` comes from: a path, or a hub id as it is."""
    path = Path(source.name).expanduser()
    return str(path.resolve()) if path.exists() else source.name


def _refresh(bundle: Bundle, source: Source, described: Description, target: Target) -> None:
    """Give ``bundle`` the small files that ``source`` has by now, where it may be written."""
    if source.small_files or (source.converted and not is_kept(bundle.folder, target.digest)):
        tied = described.layout.tied
        files = source.model_files(untied=bool(tied) and bundle.manifest.tied != tied)
        if refresh_model_folder(bundle.model_folder, files) and source.can_keep(bundle.model_folder):
            note_kept(bundle.folder, target.digest)
    if target.weights is not None:
        write_note(bundle.folder, target.weights)


def _order_experts(source: Source, described: Description, routes: Routes | None) -> Order:
    if routes is None:
        return {}
    routes.check_model(experts_of(described.model), source.name)
    return order_experts(routes, described.layout.blocks).orders


def _find_targets(
    store: Path,
    source: Source,
    described: Description,
    order: Order,
    options: PackOptions,
    candidates: Sequence[Rules],
) -> list[Target]:
    """The target by each of ``candidates``."""
    digest = source.digest(described, store, options.progress)
    ordered = describe(described.model, described.addresses, order) if order else None
    any_order = options.routes is None
    weights = source.weights_digest(store, options.progress)
    found = []
    for rules in candidates:
        seen = [options.calibrator.digest] if options.calibrator is not None else []
        if options.routes is not None and rules.size is not None:
            seen.append(options.routes.uses_digest())
        found.append(
            find_target(store, digest, described, rules, ordered, seen, any_order=any_order, weights_digest=weights)
        )
    return found


def _choose_known(folders: Sequence[Path]) -> int | None:
    """The number of the only one of ``folders`` that is a bundle, or if none is, that was begun; None where that does
    not tell."""
    if len(folders) == 1:
        return 0
    there = [number for number, folder in enumerate(folders) if Bundle.is_bundle(folder)]
    begun = [number for number, folder in enumerate(folders) if folder.with_name(folder.name + PARTIAL).is_dir()]
    found = there or begun
    return found[0] if len(found) == 1 else None


def _pack(source: Source, described: Description, order: Order, target: Target, options: PackOptions) -> None:
    """Write the bundle ``target``, whose lock is held."""
    store = target.folder.parent
    with ExitStack() as stack:
        calibration = options.calibrator() if options.calibrator is not None else NOTHING
        contents, aside = _read(source, described, options.room(calibration))
        stack.callback(contents.weights.close)
        addresses = {} if options.aligned else contents.addresses
        layout = describe(contents.model, addresses, order)
        calibration = calibration.of_stored(layout.tied)
        scratch = ScratchFile(store, min(_MOST_ENCODED, options.memory // 8))
        weights = EncodedWeights(
            contents.weights, scratch, calibration.importance, room=aside.matrices, threads=aside.threads
        )
        stack.callback(weights.close)
        arranged = _arrange(contents, layout, weights, calibration, target, options)

        stripes = prepare_stripes(store, options.stripes)
        sweep(store, stripes)
        lengths = [block.extent.length for block in arranged.layout.blocks]
        drives = drives_for(target.folder, stripes, lengths, memory=options.staging)
        layout = stripe(arranged.layout, drives)
        check_room(target.folder, layout, drives, stripes, options.flash_limit)
        writer = BundleWriter(
            target.folder, layout.blocks, layout.files, drives=drives, staging=options.staging, direct=options.direct
        )
        stack.callback(writer.close)
        name = str(described.dtype).removeprefix("torch.")
        manifest = Manifest(
            target.identity, target.digest, name, str(options.rules), layout.tied, (), (), notes=arranged.notes
        )

        def write_model(folder: Path) -> None:
            source.write_model_files(folder, untied=contents.untied)

        write_bundle(writer, layout, weights, manifest, write_model, options.progress, aside.pieces)


def _read(source: Source, described: Description, room: int) -> tuple[SourceContents, Aside]:
    """The contents of ``source``, and memory for what runs beside reading: of ``room`` bytes all together, as long as
    reading does with the rest."""
    aside = Aside.of(room, count_usable_cores())
    try:
        return source.read(described, room - aside.total), aside
    except BudgetTooSmall:
        return source.read(described, room), Aside(0, 1, 0)


def _arrange(
    contents: SourceContents,
    layout: Layout,
    weights: EncodedWeights,
    calibration: Calibration,
    target: Target,
    options: PackOptions,
) -> Arranged:
    """If the length of a format depends on the numbers, find it by encoding them once more. Lengths that an interrupted
    packing has found are used again."""
    folder = target.folder.with_name(target.folder.name + PARTIAL)
    with closing(KeptLengths(folder, weights.lengths)) as lengths, one_torch_thread():
        measure = Measurements(
            contents.weights,
            lengths,
            lambda: {**assumed_shares(contents.model, layout, options.routes), **calibration.shares},
            calibration,
            options.progress,
            lambda blocks: weights.expect_lengths(lengths.unknown(blocks)),
        )
        stored = contents.weights.stored()
        return arrange(contents.model, layout, options.rules, stored, measure, options.progress)
