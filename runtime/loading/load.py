"""``load`` a checkpoint or ``wrap`` a model: both return a transformers model that streams its weights."""

import difflib
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...kernels.closing import closed_on_error
from ...kernels.devices.base import Device
from ...kernels.memory.heap import bound_kernel_caches
from ...tiering.errors import ConfigError
from ...tiering.progress import Progress, Quiet
from ...tiering.store.bundle.gone import told_when_gone
from ...tiering.store.bundle.origin import note_use
from ...tiering.store.bundle.reader import Bundle
from ..checkpoints.open import open_source
from ..checkpoints.source import Source
from ..config.config import Config
from ..config.settings import OVERRIDES
from ..packing.pack import pack
from .exact_choice import rules_of
from .handle import Handle
from .install import install
from .opening import OpenedModel
from .openings.device import device_budget, open_device
from .openings.kv_memory import kv_device_bytes
from .placeholder_model import bare_model, dtype_of
from .progress import shown
from .stored_layout import check_stored


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
    """Load a transformers causal language model whose weights stay on flash and pass through ``host_memory`` bytes.

    ``source`` is a checkpoint folder, a GGUF file, a hub id, or a bundle folder. A checkpoint is packed into the store
    first, once. ``config`` is a TOML file or a Config; keywords override its settings (``host_memory="2GiB"``, ...).
    ``dtype`` defaults to the checkpoint's. ``record`` names a file for a recording of every decision, for replay,
    written when the model is closed. All other ``options`` go on to transformers (``attn_implementation``, ...). Use
    the result as any transformers model. It has a Handle as ``.penstock``, and is a context manager that closes itself.

    Raises PenstockError: ConfigError, CheckpointError, BundleError, BudgetTooSmall, FlashFull, DeviceUnavailable,
    TraceError.
    """
    bound_kernel_caches()
    settings, options = _split_settings(config, options)
    device = _open_device(settings)
    with shown(progress) as bar:
        opened = _open(source, settings, revision, trust_remote_code, bar)
        bundle = _find_bundle(opened, settings, dtype, device, bar)
        with told_when_gone(bundle.folder), closed_on_error(bundle):
            model = bare_model(bundle, trust_remote_code, options, opened if isinstance(opened, Source) else None)
            return install(model, bundle, settings, device, bar, record)


def load_opened(opened: OpenedModel, settings: Config, progress: Progress) -> PreTrainedModel:
    """Load a model whose files are ``opened`` already; otherwise as ``load``. They are not opened again."""
    source = opened.folder.parent if opened.checkpoint is None else opened.checkpoint
    bound_kernel_caches()
    device = _open_device(settings)
    bundle = _find_bundle(source, settings, None, device, progress)
    with told_when_gone(bundle.folder), closed_on_error(bundle):
        model = bare_model(bundle, opened.trust_remote_code, {}, opened.checkpoint)
        return install(model, bundle, settings, device, progress, None)


def _open(
    source: str | Path, settings: Config, revision: str | None, trust_remote_code: bool, progress: Progress
) -> Path | Source:
    """The checkpoint ``source``, opened; the folder of a bundle as it is."""
    if Bundle.is_bundle(source):
        return Path(source)
    quiet = isinstance(progress, Quiet)
    store = settings.store.path
    return open_source(source, store=store, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)


def _find_bundle(
    source: Path | Source,
    settings: Config,
    dtype: torch.dtype | str | None,
    device: Device | None,
    progress: Progress,
) -> Bundle:
    """Open the bundle ``source``, or pack ``source`` into one, in ``dtype``, to be computed on ``device``. Raises what
    ``load`` raises."""
    wanted = None if dtype in (None, "auto") else dtype_of(dtype)
    if isinstance(source, Path):
        bundle = Bundle.open(source, direct=settings.direct)
        note_use(source)
        if wanted not in (None, dtype_of(bundle.manifest.dtype)):
            bundle.close()
            raise ConfigError(f"{source} holds {bundle.manifest.dtype} weights; pack the checkpoint as {dtype}")
        return bundle
    return pack(
        source,
        store=settings.store.path,
        host_memory=settings.host_budget(),
        dtype=wanted,
        flash_limit=settings.flash_limit,
        rules=rules_of(settings, device),
        stripes=settings.store.stripes,
        aligned=settings.aligned,
        direct=settings.direct,
        progress=progress,
    )


def wrap(
    model: PreTrainedModel,
    config: str | Path | Config | None = None,
    *,
    progress: Progress | None = None,
    record: str | Path | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Move the weights of an already built ``model`` out to a bundle, and return ``model`` itself, which streams them.

    Settings and errors are those of ``load``.
    """
    bound_kernel_caches()
    settings, options = _split_settings(config, options)
    if options:
        raise ConfigError(f"wrap does not know {', '.join(sorted(options))}; it takes {', '.join(sorted(OVERRIDES))}")
    if isinstance(getattr(model, "penstock", None), Handle):
        raise ConfigError("this model is already wrapped; close it and load it again to change its settings")
    from ..checkpoints.built_model import BuiltModel  # here: no checkpoint needs it

    device = _open_device(settings)
    with shown(progress) as bar:
        bundle = pack(
            BuiltModel.of(model),
            store=settings.store.path,
            flash_limit=settings.flash_limit,
            rules=rules_of(settings, device),
            stripes=settings.store.stripes,
            aligned=settings.aligned,
            direct=settings.direct,
            progress=bar,
        )
        with told_when_gone(bundle.folder), closed_on_error(bundle):
            check_stored(model, bundle.manifest, bundle.folder)
            return install(model.eval(), bundle, settings, device, bar, record, teaches=False)


def _open_device(settings: Config) -> Device | None:
    """The device to compute on; None for the CPU. Wrong settings of devices are refused here, before any long work."""
    device = open_device(settings)
    if device is not None:
        device_budget(settings, device, 0)
    kv_device_bytes(settings, 0)
    return device


def _split_settings(config: str | Path | Config | None, options: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The effective Config, and the options that go on to transformers. Raises ConfigError."""
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
