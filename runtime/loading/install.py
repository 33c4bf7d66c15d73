"""Install a bundle in its model: arrange memory, build the engine, put leased weights in the place of the model's."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ...kernels.closing import closed_on_error
from ...kernels.devices.base import Device
from ...kernels.io import backends
from ...kernels.machine.machine import MemoryMeter, count_usable_cores
from ...kernels.process.interrupts import SHIELD
from ...kernels.products.row_parts import BIT_TRIALS
from ...tiering.driving.small_files import in_words
from ...tiering.errors import PenstockError
from ...tiering.planner.arrangement import Arrangement, typical_block
from ...tiering.progress import Progress
from ...tiering.store.bundle.reader import Bundle
from ..config.config import Config
from ..config.settings import Kv
from ..engine.abandoned import ABANDONED
from ..engine.engine import Engine
from ..machine import bit_trials, runs_file
from ..machine.reading import reading_of
from ..modules.model_forward import Around
from ..tiers.device.tier import DeviceUse
from ..tiers.expert_planes import units
from .arrangement import arrange_model, find_budgets
from .handle import Handle
from .outline import layout_of, outline_model
from .placeholder_model import move_out
from .run_name import run_name
from .streamed_class import streamed_class

if TYPE_CHECKING:
    from ..kv.adapter import PagedKV
    from ..kv.cache.tier import KVTier
    from ..prefixes.prefix import Prefixes


def install(
    model: PreTrainedModel,
    bundle: Bundle,
    settings: Config,
    device: Device | None,
    progress: Progress,
    record: str | Path | None,
    *,
    teaches: bool = True,
) -> PreTrainedModel:
    """Make ``model``, built with the layout of ``bundle``, compute with the weights in there, on ``device`` if there is
    one. Returns the model itself, with a Handle. ``record`` is the file for a recording. ``teaches``:
    what the run shows is kept for plans.

    Raises PenstockError: BudgetTooSmall, ConfigError, DeviceFull, TraceError, BundleError. An error before the weights
    are moved out leaves the model as it was.
    """
    manifest = bundle.manifest
    quality, drives = settings.weights.quality, len(manifest.drive_bytes)
    outline = outline_model(model, layout_of(manifest), quality, drives)
    budgets = find_budgets(outline, settings, device, model.config)
    block = typical_block(outline, budgets)
    set_threads(settings.compute.threads)
    bit_trials.load(BIT_TRIALS)
    arrangement = arrange_model(outline, budgets, settings, reading_of(bundle.paths, settings.io, block=block))
    if bundle.direct and backends.choose_direct(arrangement.reading.backend) is False:
        bundle.close()
        bundle = Bundle.open(bundle.folder, direct=False)
    ABANDONED.wait()
    with SHIELD:  # an engine that nobody knows of would keep its threads and its memory
        return _build_in(model, bundle, arrangement, settings, device, progress, record, teaches)


def _build_in(
    model: PreTrainedModel,
    bundle: Bundle,
    arrangement: Arrangement,
    settings: Config,
    device: Device | None,
    progress: Progress,
    record: str | Path | None,
    teaches: bool,
) -> PreTrainedModel:
    """Build the engine for ``bundle`` and put ``model`` on it. Returns the model, with a Handle."""
    with closed_on_error(bundle):
        engine = _build_engine(model, bundle, arrangement, settings, device, record, teaches)
    try:
        engine.load(progress)
        paged = None if engine.kv is None else _page_kv(model, engine.kv)
        # Not earlier: until here, an error leaves a wrapped model as it was.
        move_out(model, bundle.manifest, engine.tier.compute)
        around = None if paged is None else paged.forward
        arounds: list[Around] = [] if around is None else [around]
        engine.attach(model, around if settings.prefix_quota is None else partial(_enter_all, arounds))
    except BaseException:
        engine.close()
        raise
    model.__class__ = streamed_class(type(model))
    prefixes = _open_prefixes(settings, model, bundle, engine.kv)
    if prefixes is not None and not isinstance(prefixes, str) and prefixes.supported:
        arounds.append(prefixes.watch)
    model.penstock = Handle(model, engine, paged, prefixes)
    return model


@contextmanager
def _enter_all(arounds: Sequence[Around], kwargs: dict[str, Any]) -> Iterator[None]:
    """Be inside of all ``arounds`` while the model computes with the arguments ``kwargs``, which they may change."""
    with ExitStack() as stack:
        for around in arounds:
            stack.enter_context(around(kwargs))
        yield


def _build_engine(
    model: PreTrainedModel,
    bundle: Bundle,
    arrangement: Arrangement,
    settings: Config,
    device: Device | None,
    record: str | Path | None,
    teaches: bool,
) -> Engine:
    """The engine for an ``arrangement`` of ``model``, with its KV tier if KV is in pages; nothing is read yet."""
    device_use = None
    if device is not None:
        experts = settings.experts
        device_use = DeviceUse(device, host_experts=experts.misses == "auto", grouped=experts.products == "grouped")
    kv = _open_kv(settings, arrangement, model, device)
    teach = None
    if teaches and device is None and kv is None:  # else the speed depends on more than a forecast knows
        teach = partial(runs_file.keep, run_name(bundle.folder, bundle.manifest, settings), settings.compute.threads)
    with closed_on_error(kv):
        return Engine(
            bundle,
            units(bundle.manifest.blocks, arrangement.outline.quality),
            arrangement,
            MemoryMeter(),
            record=record,
            kv=kv,
            device_use=device_use,
            teach=teach,
        )


def _open_kv(
    settings: Config, arrangement: Arrangement, model: PreTrainedModel, device: Device | None
) -> "KVTier | None":
    """The KV tier, if KV is in pages. What handles them is imported only where a setting asks for it."""
    if settings.kv == Kv():
        return None
    from .openings.kv import open_kv_tier

    budgets = arrangement.budgets
    return open_kv_tier(settings, arrangement.reading, model.config, budgets.kv_floor, device, budgets.kv_device)


def _page_kv(model: PreTrainedModel, tier: "KVTier") -> "PagedKV":
    from ..kv.adapter import PagedKV

    return PagedKV(model, tier)


def _open_prefixes(
    settings: Config, model: PreTrainedModel, bundle: Bundle, tier: "KVTier | None"
) -> "Prefixes | str | None":
    """The kept prompts; None where none are asked for; the reason why they cannot be kept, since the model runs without
    them too."""
    if settings.prefix_quota is None:
        return None
    from .openings.prefixes import open_prefixes

    try:
        label = "".join(c if c.isprintable() else "_" for c in bundle.folder.name)  # terminals show it
        return open_prefixes(settings, settings.prefix_quota, model, bundle.manifest, tier, label=label)
    except PenstockError as error:
        return str(error)
    except OSError as error:
        return f"{settings.store.path} cannot be used for stored prompts: {in_words(error)}; see [store] path"


def set_threads(wanted: int | str) -> None:
    """Let torch compute with ``wanted`` threads; "auto": its own number, at most the cores that may run at a time."""
    threads = min(torch.get_num_threads(), count_usable_cores()) if wanted == "auto" else int(wanted)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
