"""The front door's two calls: ``load`` a checkpoint, ``wrap`` a model; both give back a transformers model."""

import difflib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...kernels.devices.base import Device
from ...kernels.formats.registry import FORMATS
from ...kernels.io import backends
from ...kernels.machine.machine import MemoryMeter, usable_cores
from ...kernels.memory.heap import bound_kernel_caches
from ...kernels.products.row_parts import VERDICTS
from ...tiering.errors import BudgetTooSmall, Closed, ConfigError, PenstockError
from ...tiering.policy.placement.placement import Placement, SizedBlock, place
from ...tiering.policy.placement.shrinking import Divisions
from ...tiering.policy.reads import Reading, streamed_lengths, typical_read
from ...tiering.progress import Progress
from ...tiering.store.bundle.manifest import Block
from ...tiering.store.bundle.reader import Bundle
from ...tiering.units import BlockId, format_size
from ..config.config import Config
from ..config.settings import OVERRIDES
from ..engine.engine import Engine
from ..engine.stats import PrefixStats, Stats
from ..kv.adapter import PagedKV
from ..kv.cache.tier import KVTier
from ..machine import bit_trials as verdicts
from ..machine.reading import reading_of
from ..packing.pack import pack, pack_model
from ..prefixes.prefill import is_plain
from ..prefixes.prefix import Prefixes
from ..routing.profiling import Recording
from ..tiers.embedding_rows import row_readable
from ..tiers.expert_planes import units
from ..tracing.replay import RunRecording
from ..tracing.trace import Trace
from .openings.device import check_formats, device_budget, open_device, place_above
from .openings.kv import kv_device_bytes, open_kv_tier
from .openings.prefixes import open_prefixes
from .placeholder_model import bare_model, dtype_of, move_out, replace_tensors
from .progress import shown
from .streamed_class import streamed_class


class Handle:
    """``model.penstock``: what penstock says and does about a loaded model."""

    def __init__(
        self, model: PreTrainedModel, engine: Engine, paged: PagedKV | None, prefixes: Prefixes | str | None
    ) -> None:
        """``prefixes``, or why there are none, if they were asked for."""
        self._engine, self.paged = engine, paged
        self.prefixes = None if isinstance(prefixes, str) else prefixes
        """Prompts that are kept on flash, if ``kv_prefix`` asked for it: for those who call the model themselves."""
        self._prefix_problem = prefixes if isinstance(prefixes, str) else ""
        self._modules = _count_modules(model)
        self._model = weakref.ref(model)
        self._finalizer = weakref.finalize(model, engine.close)

    @property
    def placement(self) -> Placement:
        """What of the model is where in host memory, under which budget."""
        return self._engine.host_placement

    @property
    def device_placement(self) -> Placement | None:
        """The same of the device's memory; None where the CPU computes."""
        return None if self._engine.device is None else self._engine.device.placement

    @property
    def bundle(self) -> Path:
        """The folder of the bundle that the weights come from."""
        return self._engine.bundle.folder

    @property
    def reading(self) -> Reading:
        """How the drive is read."""
        return self._engine.reading

    def stats(self) -> Stats:
        """Counts, bytes and seconds since the model was loaded."""
        stats = self._engine.stats()
        prompts = PrefixStats(problem=self._prefix_problem) if self.prefixes is None else self.prefixes.stats()
        return replace(stats, prefix=prompts)

    def synchronize(self) -> None:
        """Wait until a device has computed what the calling thread has given it: whoever measures time must. The CPU
        has always done so."""
        if self._engine.device is not None:
            self._engine.device.synchronize()

    def cache(self) -> DynamicCache:
        """An empty KV cache, in pages if the model's KV is. Raises Closed."""
        return (
            DynamicCache(config=self._running("make a cache").config) if self.paged is None else self.paged.new_cache()
        )

    def keeps(self, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a prompt that is generated from with these arguments may come from flash, and go there."""
        model = self._model()
        if self.prefixes is None or not self.prefixes.supported or model is None:
            return False
        # An adapter that somebody put in changes KV.
        return is_plain(input_ids, kwargs) and _count_modules(model) == self._modules

    @property
    def recording(self) -> RunRecording | None:
        """The recording that ``record=FILE`` asked for; its ``stop()`` ends it before the model is closed."""
        return self._engine.recording

    def trace(self, path: str | Path) -> Trace:
        """Record reads, stalls and the compute of each layer from now on, for Perfetto or chrome://tracing.

        The file ``path`` is written, readable by this user only, when the result's ``stop()`` is called, at the end of
        a ``with`` over it, or when the model is closed. One trace at a time. Raises TraceError, before anything is
        recorded, when one is being recorded or ``path`` cannot be written, and Closed.
        """
        return self._engine.trace(self._running("record a trace of it"), path)

    def profile(self, text: str = "") -> Recording:
        """Record from now on which experts each token uses, of one sequence at a time.

        It ends with the result's ``stop()`` or with a ``with`` over it; its ``routes()`` is a routing trace, of a text
        called ``text``, which can be saved. Raises TraceError for a model without experts, and Closed.
        """
        return Recording(self._running("record its routing"), text)

    def close(self) -> None:
        """Stop reading, give the memory back, write what is recorded. Idempotent; the model cannot compute any more.
        Raises TraceError, when all else is done, if something cannot be written."""
        model = self._model()
        if self.prefixes is not None:
            self.prefixes.close()  # what is still to be written may lie in pages
        if self._finalizer.detach() and model is not None:
            replace_tensors(model, self._engine.tier.holds)
        self._engine.close()

    def _running(self, purpose: str) -> PreTrainedModel:
        """The model, unless it was closed. Raises Closed."""
        model = self._model()
        if model is None or not self._finalizer.alive:
            raise Closed(f"this model was closed; load it again to {purpose}")
        return model


def load(
    source: str | Path,
    config: str | Path | Config | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | str | None = None,
    progress: Progress | None = None,
    record: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A transformers causal language model whose weights stay on flash and pass through ``host_memory`` bytes.

    ``source`` is a checkpoint folder, a hub id, or a bundle folder. A checkpoint is packed into the store first, once.
    ``config`` is a TOML file or a Config; its settings can be overridden by keyword (``host_memory="2GiB"``, ...).
    ``record`` names a file for a recording of every decision, for replay, written when the model is closed.
    All other ``options`` go on to transformers (``attn_implementation``, ...). The result is used as always, and has a
    Handle as ``.penstock``; it is also a context manager that closes itself.

    Raises PenstockError: ConfigError, CheckpointError, BundleError, BudgetTooSmall, FlashFull, DeviceUnavailable,
    TraceError.
    """
    bound_kernel_caches()
    settings, options = _settings(config, options)
    device = _device(settings)
    with shown(progress) as bar:
        if Bundle.is_bundle(source):
            bundle = Bundle.open(Path(source), direct=settings.direct)
            if dtype not in (None, "auto") and dtype_of(dtype) != dtype_of(bundle.manifest.dtype):
                bundle.close()
                raise ConfigError(f"{source} holds {bundle.manifest.dtype} weights; pack the checkpoint as {dtype}")
        else:
            bundle = pack(
                source,
                store=Path(settings.store.path),
                host_memory=settings.host_budget(),
                dtype=None if dtype in (None, "auto") else dtype_of(dtype),
                flash_limit=settings.flash_limit,
                rules=settings.rules,
                stripes=settings.store.stripes,
                aligned=settings.aligned,
                revision=revision,
                trust_remote_code=trust_remote_code,
                direct=settings.direct,
                progress=bar,
            )
        with _closed_on_error(bundle):
            return _install(bare_model(bundle, trust_remote_code, options), bundle, settings, device, bar, record)


def wrap(
    model: PreTrainedModel,
    config: str | Path | Config | None = None,
    *,
    progress: Progress | None = None,
    record: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Move the weights of an already built ``model`` out to a bundle; ``model`` itself is given back, streamed.

    Settings and errors are those of ``load``.
    """
    bound_kernel_caches()
    settings, options = _settings(config, options)
    if options:
        raise ConfigError(f"wrap does not know {', '.join(sorted(options))}; it takes {', '.join(sorted(OVERRIDES))}")
    if isinstance(getattr(model, "penstock", None), Handle):
        raise ConfigError("this model is already wrapped; close it and load it again to change its settings")
    device = _device(settings)
    with shown(progress) as bar:
        bundle = pack_model(
            model,
            store=Path(settings.store.path),
            flash_limit=settings.flash_limit,
            rules=settings.rules,
            stripes=settings.store.stripes,
            aligned=settings.aligned,
            direct=settings.direct,
            progress=bar,
        )
        with _closed_on_error(bundle):
            return _install(model.eval(), bundle, settings, device, bar, record)


def _device(settings: Config) -> Device | None:
    """The device to compute on, if not the CPU does. What speaks against its settings is raised here, before anything
    long."""
    device = open_device(settings)
    if device is not None:
        device_budget(settings, device, 0)
    kv_device_bytes(settings, 0)
    return device


@contextmanager
def _closed_on_error(opened: Bundle | KVTier | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if opened is not None:
            opened.close()
        raise


# --- settings -------------------------------------------------------------------------------------------------------


def _settings(config: str | Path | Config | None, options: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The effective Config, and the options that are not penstock's."""
    ours = {name: options[name] for name in options if name in OVERRIDES}
    rest = {name: value for name, value in options.items() if name not in OVERRIDES}
    settings = config.override(**ours) if isinstance(config, Config) else Config.load(config, **ours)
    if rest.pop("experts_implementation", "eager") not in ("eager", None):
        raise ConfigError("penstock computes experts as transformers' eager implementation does; leave out the option")
    for name in ("device_map", "quantization_config", "state_dict", "torch_dtype"):
        if name in rest:
            raise ConfigError(f"{name} cannot be combined with penstock, which places the weights itself; leave it out")
    for name in rest:
        if near := difflib.get_close_matches(name, OVERRIDES, cutoff=0.75):
            raise ConfigError(f"{name} is no option of penstock; did you mean {near[0]}?")
    return settings, rest


# --- the model ------------------------------------------------------------------------------------------------------


def _install(
    model: PreTrainedModel,
    bundle: Bundle,
    settings: Config,
    device: Device | None,
    progress: Progress,
    record: str | Path | None,
) -> PreTrainedModel:
    manifest = bundle.manifest
    moved = units(manifest.blocks, settings.weights.quality)
    blocks = [SizedBlock(b.id, b.extent.length, b.resident, manifest.drive_of(b)) for b in moved]
    weights, scratch, on_host = sum(block.length for block in blocks), scratch_bytes(moved), settings.kv_host or 0
    budget = settings.host_budget(weights + on_host)
    readable = embeddings(model, moved, manifest.tied)
    on_device = kv_device_bytes(settings, weights + scratch)
    room = max(0, budget - on_host)
    with _kv_beside(on_host, on_device):
        if device is None:
            placement, device_use = place(blocks, room, embeddings=readable, scratch=scratch), None
            floor = settings.host_floor
            if floor is not None:  # weights and KV have the same share of it as of the budget
                floor = floor * placement.budget // budget
            divisions = Divisions(blocks, placement, floor=floor, embeddings=readable)
        else:
            check_formats(device, {spec.packing.format for b in moved for spec in b.tensors if spec.packing})
            placement, device_use = place_above(
                blocks, device, settings, host=room, kv=on_device, embeddings=readable, scratch=scratch
            )
            # What a device fetches from by itself stays where it is: nothing goes when the machine runs short.
            divisions = Divisions([b for b in blocks if b.id in device_use.passing], placement, floor=placement.budget)
    _set_threads(settings.compute.threads)
    verdicts.load(VERDICTS)
    reading = reading_of(bundle.paths, settings.io, block=typical_read(streamed_lengths(blocks, placement)))
    if bundle.direct and backends.directness(reading.backend) is False:
        bundle.close()
        bundle = Bundle.open(bundle.folder, direct=False)
    with _closed_on_error(bundle):
        kv = open_kv_tier(settings, reading, model.config, budget, device, on_device)
        with _closed_on_error(kv):
            engine = Engine(
                bundle,
                moved,
                placement,
                divisions,
                MemoryMeter(),
                eviction=settings.experts.eviction,
                guess=settings.experts.prefetch == "auto",
                reading=reading,
                record=record,
                kv=kv,
                device_use=device_use,
            )
    try:
        engine.load(progress)
        paged = None if engine.kv is None else PagedKV(model, engine.kv)
        # Not before: until here, an error leaves a wrapped model as it was.
        move_out(model, bundle.manifest, engine.tier.compute)
        engine.attach(model, None if paged is None else paged.forward)
    except BaseException:
        engine.close()
        raise
    model.__class__ = streamed_class(type(model))
    model.penstock = Handle(model, engine, paged, _prefixes(settings, model, bundle, engine.kv))
    return model


def _prefixes(settings: Config, model: PreTrainedModel, bundle: Bundle, tier: KVTier | None) -> Prefixes | str | None:
    """Kept prompts, None where none are asked for, or why there are none: the model can do without."""
    if settings.prefix_quota is None:
        return None
    try:
        label = bundle.folder.name
        return open_prefixes(settings, settings.prefix_quota, model, bundle.manifest, tier, label=label)
    except (PenstockError, OSError) as error:
        return str(error)


@contextmanager
def _kv_beside(kv: int, on_device: int) -> Iterator[None]:
    """Where a budget is too small, say that ``kv`` bytes of host memory, and so many ``on_device``, are for KV."""
    try:
        yield
    except BudgetTooSmall as error:
        taken = [("host", "host_memory", kv), ("device", "device_memory", on_device)]
        besides = [
            f"[kv] {key} takes {format_size(size)} of {budget} besides"
            for key, budget, size in taken
            if size and str(error).startswith(budget)
        ]
        if not besides:
            raise
        raise BudgetTooSmall("; ".join([str(error), *besides])) from error


def _set_threads(wanted: int | str) -> None:
    """Have torch compute with ``wanted`` threads; "auto": as it would, but with no more than may run at a time."""
    threads = min(torch.get_num_threads(), usable_cores()) if wanted == "auto" else int(wanted)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def embeddings(model: nn.Module, blocks: Iterable[Block], tied: Mapping[str, str]) -> dict[BlockId, bool]:
    """Blocks that an embedding can read by row, and whether nothing else uses them."""
    shared = set(tied.values())
    alone: dict[BlockId, bool] = {}
    for block in blocks:
        if block.id.kind == "dense" and not block.resident and len(block.tensors) == 1:
            if block.tensors[0].packing is not None:
                continue  # its rows are not apart
            name = block.tensors[0].name
            if name == f"{block.id.module}.weight" and row_readable(model.get_submodule(block.id.module)):
                alone[block.id] = name not in shared
    return alone


def _count_modules(model: nn.Module) -> int:
    return sum(1 for _ in model.modules())


def scratch_bytes(blocks: Iterable[Block]) -> int:
    """Bytes that decoding takes: of a matrix in an exact format as a whole."""
    specs = (spec for block in blocks for spec in block.tensors)
    whole = (spec for spec in specs if spec.packing is not None and FORMATS[spec.packing.format].exact)
    return max((prod(spec.shape) * getattr(torch, spec.dtype).itemsize for spec in whole), default=0)
