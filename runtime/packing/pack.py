"""Packs a checkpoint, or a model in memory, into a bundle in the store: within a memory budget, resumable, once."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ...tiering.progress import Progress, Quiet
from ...tiering.store.bundle.folder import PARTIAL, ensure_room, locked, prepare
from ...tiering.store.bundle.manifest import PLAIN, Block, Drive, Manifest
from ...tiering.store.bundle.reader import Bundle
from ...tiering.store.bundle.stripes import parts_of, prepare_stripes, sweep
from ...tiering.store.bundle.writer import BundleWriter, publish
from ...tiering.units import KiB, MiB, align_up
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.digest import digest_files
from ..checkpoints.gguf_file import GgufFile
from ..checkpoints.layout import Layout, layout
from ..checkpoints.meta_model import skeleton
from ..checkpoints.model_files import write_model_folder
from ..checkpoints.source import Content, content_of, open_source
from ..checkpoints.weights import ModelWeights, Weights
from ..machine.drives import drives_for
from ..routing.profiling import experts_of
from ..routing.routes import Routes
from .calibration import Calibration, Calibrator
from .encoding import EncodedWeights, encoded
from .expert_order import arrange
from .formats import Rules, choices
from .lengths import KeptLengths
from .scratch_file import ScratchFile
from .size_target import fitted
from .striping import striped
from .threads import one_torch_thread

LEAST_MEMORY = 4 * MiB
"""Packing may use this much whatever the budget: less would only make it slow."""

_STAGING = 8 * MiB
_MOST_ENCODED = 32 * MiB
"""An encoded matrix that is larger lies in a file until it is written."""
_NOTHING = Calibration({}, {})


def pack(
    source: str | Path | Checkpoint | GgufFile,
    *,
    store: Path,
    host_memory: int,
    dtype: torch.dtype | None = None,
    flash_limit: int | None = None,
    rules: Rules | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    stripes: Sequence[Path] = (),
    routes: Routes | None = None,
    calibrator: Calibrator | None = None,
    aligned: bool = False,
    direct: bool | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """The bundle of ``source`` (a folder, GGUF file or hub id, or a checkpoint that is opened already) in ``store``,
    written if it is not there: weights in ``dtype`` (None: the checkpoint's own) and in the formats of ``rules`` (as
    they are if not given), in at most ``host_memory`` bytes of memory, with all bundles in at most ``flash_limit``
    bytes. ``stripes`` are folders on other
    drives, to which blocks are dealt by measured speed. With ``routes``, experts that are used together lie together
    where that pays, and those that are used more have more of the size that is to be fitted. With a ``calibrator``,
    errors count by what it measures. A bundle that is there is taken as it is, whatever drives it was dealt to, and
    without either whatever the order of its experts and the text it was calibrated with. ``aligned`` is for a device,
    on which transformers has every weight at a multiple of TENSOR_ALIGNMENT, wherever that is in the checkpoint.

    Raises CheckpointError when weights are missing or misshapen, BudgetTooSmall, FlashFull, BundleError when a drive
    fails, ConfigError when a folder cannot be used, TraceError when ``routes`` are of another model. What an
    interruption leaves is taken up by the next call; KeyboardInterrupt then says so.
    """
    quiet = progress is None or isinstance(progress, Quiet)
    if isinstance(source, str | Path):
        opened = open_source(source, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)
    else:
        opened, source = source, source.folder
    rules = rules or Rules()
    dtype = dtype or opened.dtype()
    memory = max(host_memory, LEAST_MEMORY)
    model = skeleton(opened.config, dtype, trust_remote_code=trust_remote_code)
    plan = layout(model)
    order: Mapping[str, Sequence[int]] = {}
    if routes is not None:
        routes.check_model(experts_of(model), str(source))
        order = arrange(routes, plan.blocks).orders
    store = prepare(store)
    digest = digest_files(opened.content, store, progress)
    kind = ["aligned"] if aligned else []
    identity = _identity(digest, str(dtype), rules, plan, *kind)
    target = store / f"{_file_name(opened.config.model_type)}-{identity[:16]}"
    seen = [calibrator.digest] if calibrator is not None else []
    if routes is not None and rules.size is not None:
        seen.append(routes.uses_digest())
    if order or seen:
        identity = _identity(digest, str(dtype), rules, layout(model, order=order), *kind, *seen)
        target = target.with_name(f"{target.name}-{identity[:8]}")
    elif routes is None:
        target = _special(target) or target

    def job() -> _Job:
        calibration = _NOTHING if calibrator is None else calibrator()
        room = max(LEAST_MEMORY, memory - calibration.nbytes) - _staging(memory)
        content = content_of(opened, model, order, dtype, room, aligned=aligned)
        name = str(dtype).removeprefix("torch.")
        manifest = Manifest(identity, digest, name, str(rules), content.plan.tied, (), ())
        return _encoded(target, content, manifest, rules, progress, _scratch(store, memory), calibration, routes)

    return _pack(
        target,
        job,
        staging=_staging(memory),
        flash_limit=flash_limit,
        stripes=stripes,
        direct=direct,
        progress=progress,
    )


def pack_model(
    model: PreTrainedModel,
    *,
    store: Path,
    flash_limit: int | None = None,
    rules: Rules | None = None,
    stripes: Sequence[Path] = (),
    aligned: bool = False,
    direct: bool | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """The bundle of a ``model`` whose weights are in memory, in its own dtypes and the formats of ``rules`` (as they
    are if not given), written if it is not in ``store``; ``aligned`` as for ``pack``.

    Errors as for ``pack``.
    """
    rules = rules or Rules()
    addresses = {} if aligned else {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    plan = layout(model, addresses)
    store = prepare(store)
    weights = ModelWeights(model)
    digest = _digest_model(plan, weights, progress or Quiet())
    dtype = str(model.dtype)
    identity = _identity(digest, dtype, rules, plan)
    scratch = ScratchFile(store, _MOST_ENCODED)

    def write_model(folder: Path) -> None:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)

    manifest = Manifest(identity, digest, dtype.removeprefix("torch."), str(rules), plan.tied, (), ())
    target = store / f"{_file_name(model.config.model_type)}-{identity[:16]}"
    return _pack(
        target,
        lambda: _encoded(target, Content(model, weights, plan, write_model), manifest, rules, progress, scratch),
        staging=_STAGING,
        flash_limit=flash_limit,
        stripes=stripes,
        direct=direct,
        progress=progress,
    )


@dataclass(frozen=True)
class _Job:
    """What there is to write: ``manifest`` lacks files, drives and blocks."""

    plan: Layout
    weights: Weights
    manifest: Manifest
    write_model: Callable[[Path], None]


def _encoded(
    target: Path,
    content: Content,
    manifest: Manifest,
    rules: Rules,
    progress: Progress | None,
    scratch: ScratchFile,
    calibration: Calibration = _NOTHING,
    routes: Routes | None = None,
) -> _Job:
    """What to write of ``content`` by ``rules`` to ``target``. Where a format's length depends on the numbers, they are
    encoded once more, to find it out: places must be known before anything is written. An interrupted packing's
    findings are taken up."""
    plan, weights, bar = content.plan, content.weights, progress or Quiet()
    calibration = calibration.of_stored(plan.tied)
    by_rule = choices(content.model, plan, rules, weights.stored())
    coded = EncodedWeights(weights, scratch, calibration.importance)
    with closing(KeptLengths(target.with_name(target.name + PARTIAL), coded.lengths)) as lengths:
        if chosen := fitted(content.model, plan, by_rule, weights, calibration, routes, bar, lengths):
            bar.start("measuring", plan.total_bytes)
            try:
                with one_torch_thread():
                    plan, notes = encoded(plan, chosen, lengths, bar.advance, equal=rules.size is None)
            finally:
                bar.finish()
            weights, manifest = coded, replace(manifest, notes=notes)
    return _Job(plan, weights, manifest, content.write_model)


def _special(target: Path) -> Path | None:
    """The latest bundle of what ``target`` is for that was made with a routing trace or a text, if there is one."""
    found = [folder for folder in target.parent.glob(f"{target.name}-{'[0-9a-f]' * 8}") if Bundle.is_bundle(folder)]
    return max(found, key=lambda folder: (folder / "manifest.json").stat().st_mtime_ns, default=None)


def _pack(
    target: Path,
    job_of: Callable[[], _Job],
    *,
    staging: int,
    flash_limit: int | None,
    stripes: Sequence[Path],
    direct: bool | None,
    progress: Progress | None,
) -> Bundle:
    """Write the bundle ``target`` unless it is there, and open it. ``job_of`` is asked only if it must be written."""
    if not Bundle.is_bundle(target):
        with locked(target), ExitStack() as stack:
            if not publish(target):
                job = job_of()
                stack.callback(job.weights.close)
                stripes = prepare_stripes(target.parent, stripes)
                sweep(target.parent, stripes)
                lengths = [block.extent.length for block in job.plan.blocks]
                drives = drives_for(target, stripes, lengths, memory=staging)
                job = replace(job, plan=striped(job.plan, drives))
                _ensure_room(target, job.plan, drives, stripes, flash_limit)
                writer = BundleWriter(
                    target, job.plan.blocks, job.plan.files, drives=drives, staging=staging, direct=direct
                )
                stack.callback(writer.close)
                _write(writer, job, progress or Quiet())
    return Bundle.open(target, direct=direct)


def _ensure_room(
    target: Path, plan: Layout, drives: Sequence[Drive], stripes: Sequence[Path], limit: int | None
) -> None:
    """Raise FlashFull unless each drive has room for its share, and all drives together may hold ``plan``."""
    folders = [target.with_name(target.name + PARTIAL), *(Path(drive.folder) for drive in drives[1:])]
    needs = dict.fromkeys(folders, 0)
    for file in plan.files:
        needs[folders[file.drive]] += file.length
    store = target.parent
    ensure_room(store, needs, limit, elsewhere=[part for stripe in stripes for part in parts_of(store, stripe)])


def _write(writer: BundleWriter, job: _Job, progress: Progress) -> None:
    progress.start("packing", job.plan.total_bytes)
    try:
        progress.advance(writer.done_bytes)
        with one_torch_thread():
            todo = job.plan.blocks[writer.done :]
            for block, following in zip_longest(todo, todo[1:]):
                if following:
                    job.weights.expect(following)
                writer.append(_pieces(block, job.weights))
                progress.advance(block.extent.length)
        write_model_folder(writer.folder / "model", job.write_model)
        writer.finish(job.manifest)
    except KeyboardInterrupt:
        percent = 100 * writer.done_bytes // max(1, job.plan.total_bytes)
        raise KeyboardInterrupt(
            f"packing was interrupted at {percent} %; run the same again to go on from there, or delete {writer.folder}"
        ) from None
    finally:
        progress.finish()


def _pieces(block: Block, weights: Weights) -> Iterator[tuple[int, memoryview]]:
    """The block's content: offsets in the block and the bytes there."""
    for spec in block.tensors:
        at = spec.offset
        for piece in weights.pieces(spec, block.id.expert):
            yield at, piece
            at += len(piece)
        assert at == spec.offset + spec.length, f"{spec.name} has {at - spec.offset} bytes instead of {spec.length}"


def _identity(digest: str, dtype: str, rules: Rules, plan: Layout, *seen: str) -> str:
    """SHA-256 of all that decides what the bundle holds; ``seen`` is what else does, as digests of what it was
    calibrated with. The layout too: it depends on transformers' version. Not the drives: a bundle holds the same,
    however it is dealt."""
    return hashlib.sha256(json.dumps([digest, dtype, str(rules), PLAIN, plan.digest(), *seen]).encode()).hexdigest()


def _digest_model(plan: Layout, weights: Weights, progress: Progress) -> str:
    """SHA-256 over the bytes of all weights."""
    digest = hashlib.sha256()
    progress.start("checking the weights", plan.total_bytes)
    for block in plan.blocks:
        for _, piece in _pieces(block, weights):
            digest.update(piece)
        progress.advance(block.extent.length)
    progress.finish()
    return digest.hexdigest()


def _scratch(store: Path, memory: int) -> ScratchFile:
    return ScratchFile(store, min(_MOST_ENCODED, memory // 8))


def _staging(memory: int) -> int:
    return min(_STAGING, align_up(max(64 * KiB, memory // 4)))


def _file_name(model_type: str) -> str:
    return re.sub(r"[^\w.-]", "_", model_type) or "model"
