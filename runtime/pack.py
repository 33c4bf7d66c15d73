"""Packs a checkpoint, or a model in memory, into a bundle in the store: within a memory budget, resumable, once."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..tiering.errors import CheckpointError
from ..tiering.progress import Progress, Quiet
from ..tiering.store.folder import PARTIAL, ensure_room, locked, prepare
from ..tiering.store.manifest import PLAIN, Block, Drive, Manifest
from ..tiering.store.reader import Bundle
from ..tiering.store.stripes import parts_of, prepare_stripes, sweep
from ..tiering.store.writer import BundleWriter, publish
from ..tiering.units import KiB, MiB, align_up
from .by_use import arrange
from .calibration import Calibration, Calibrator
from .checkpoint import Checkpoint
from .dial import fitted
from .digest import digest_files
from .drives import drives_for
from .encoding import EncodedWeights, encoded
from .formats import Rules, choices
from .layout import Layout, layout
from .model_files import copy_model_files, write_model_folder
from .profiling import experts_of
from .routes import Routes
from .skeleton import skeleton
from .striping import striped
from .threads import one_torch_thread
from .weights import CheckpointWeights, ModelWeights, Weights

LEAST_MEMORY = 4 * MiB
"""Packing may use this much whatever the budget: less would only make it slow."""

_STAGING = 8 * MiB
_NOTHING = Calibration({}, {})


def pack(
    source: str | Path,
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
    direct: bool | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """The bundle of the checkpoint ``source`` (a folder or hub id) in ``store``, written if it is not there: weights in
    ``dtype`` (None: the checkpoint's own) and in the formats of ``rules`` (as they are if not given), in at most
    ``host_memory`` bytes of memory, with all bundles in at most ``flash_limit`` bytes. ``stripes`` are folders on other
    drives, to which blocks are dealt by measured speed. With ``routes``, experts that are used together lie together
    where that pays, and those that are used more have more of the size that is to be fitted. With a ``calibrator``,
    errors count by what it measures. A bundle that is there is taken as it is, whatever drives it was dealt to, and
    without either whatever the order of its experts and the text it was calibrated with.

    Raises CheckpointError when weights are missing or misshapen, BudgetTooSmall, FlashFull, BundleError when a drive
    fails, ConfigError when a folder cannot be used, TraceError when ``routes`` are of another model. What an
    interruption leaves is taken up by the next call; KeyboardInterrupt then says so.
    """
    quiet = progress is None or isinstance(progress, Quiet)
    checkpoint = Checkpoint.open(source, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)
    rules = rules or Rules()
    dtype = dtype or checkpoint.dtype()
    memory = max(host_memory, LEAST_MEMORY)
    model = skeleton(checkpoint.config, dtype, trust_remote_code=trust_remote_code)
    plan = layout(model)
    order: Mapping[str, Sequence[int]] = {}
    if routes is not None:
        routes.check_model(experts_of(model), str(source))
        order = arrange(routes, plan.blocks).orders
    store = prepare(store)
    digest = digest_files(checkpoint.content, store, progress)
    identity = _identity(digest, str(dtype), rules, plan)
    target = store / f"{_file_name(checkpoint.config.model_type)}-{identity[:16]}"
    seen = [calibrator.digest] if calibrator is not None else []
    if routes is not None and rules.size is not None:
        seen.append(routes.uses_digest())
    if order or seen:
        identity = _identity(digest, str(dtype), rules, layout(model, order=order), *seen)
        target = target.with_name(f"{target.name}-{identity[:8]}")
    elif routes is None:
        target = _special(target) or target

    def job() -> _Job:
        calibration = _NOTHING if calibrator is None else calibrator()
        weights, used, used_model, untied = _checkpoint_weights(
            checkpoint, model, order, dtype, max(LEAST_MEMORY, memory - calibration.nbytes) - _staging(memory)
        )
        name = str(dtype).removeprefix("torch.")
        manifest = Manifest(identity, digest, name, str(rules), used.tied, (), ())
        return _encoded(
            _Job(used, weights, manifest, lambda folder: copy_model_files(checkpoint.folder, folder, untied)),
            used_model,
            rules,
            calibration,
            routes,
            progress,
        )

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
    direct: bool | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """The bundle of a ``model`` whose weights are in memory, in its own dtypes and the formats of ``rules`` (as they
    are if not given), written if it is not in ``store``.

    Errors as for ``pack``.
    """
    rules = rules or Rules()
    plan = layout(model, {name: tensor.data_ptr() for name, tensor in model.state_dict().items()})
    store = prepare(store)
    weights = ModelWeights(model)
    digest = _digest_model(plan, weights, progress or Quiet())
    dtype = str(model.dtype)
    identity = _identity(digest, dtype, rules, plan)

    def write_model(folder: Path) -> None:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)

    manifest = Manifest(identity, digest, dtype.removeprefix("torch."), str(rules), plan.tied, (), ())
    target = store / f"{_file_name(model.config.model_type)}-{identity[:16]}"
    return _pack(
        target,
        lambda: _encoded(_Job(plan, weights, manifest, write_model), model, rules, _NOTHING, None, progress),
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


def _checkpoint_weights(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    order: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    memory: int,
) -> tuple[CheckpointWeights, Layout, PreTrainedModel, bool]:
    """The weights, their layout with experts in ``order``, the model, and whether it had to be untied.

    Like transformers, a model that ties weights for which the checkpoint has different values is not tied.
    """
    weights = CheckpointWeights(model, checkpoint.tensors, layout(model), memory=memory)
    if not weights.contradictions():
        return weights, layout(model, weights.addresses(), order), model, False
    weights.close()
    config = copy.deepcopy(checkpoint.config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    model = skeleton(config, dtype, trust_remote_code=checkpoint.trust_remote_code)
    weights = CheckpointWeights(model, checkpoint.tensors, layout(model), memory=memory)
    if differing := weights.contradictions():
        one, other = differing[0]
        raise CheckpointError(f"the model shares one weight between {one} and {other}, the checkpoint has two for them")
    return weights, layout(model, weights.addresses(), order), model, True


def _encoded(
    job: _Job,
    model: PreTrainedModel,
    rules: Rules,
    calibration: Calibration,
    routes: Routes | None,
    progress: Progress | None,
) -> _Job:
    """``job`` for ``model`` with its matrices encoded as ``rules`` say. Where a format's length depends on the numbers,
    they are encoded once more, to find it out: places must be known before anything is written."""
    bar = progress or Quiet()
    # Inputs were seen by all names of a weight.
    tied = job.plan.tied
    seen = {tied.get(key, key) if isinstance(key, str) else key: each for key, each in calibration.importance.items()}
    calibration = replace(calibration, importance=seen)
    chosen = fitted(model, job.plan, choices(model, job.plan, rules), job.weights, calibration, routes, bar)
    if not chosen:
        return job
    weights = EncodedWeights(job.weights, calibration.importance)
    bar.start("measuring", job.plan.total_bytes)
    try:
        with one_torch_thread():
            plan, notes = encoded(job.plan, chosen, weights.lengths, bar.advance)
    finally:
        bar.finish()
    return replace(job, plan=plan, weights=weights, manifest=replace(job.manifest, notes=notes))


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
    """SHA-256 of all that decides what the bundle holds; ``seen`` are digests of what it was calibrated with. The
    layout too: it depends on transformers' version. Not the drives: a bundle holds the same, however it is dealt."""
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


def _staging(memory: int) -> int:
    return min(_STAGING, align_up(max(64 * KiB, memory // 4)))


def _file_name(model_type: str) -> str:
    return re.sub(r"[^\w.-]", "_", model_type) or "model"
