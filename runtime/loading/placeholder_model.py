"""Models with placeholders for weights: built by transformers for a bundle, or made from a model that has weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.errors import CheckpointError, ConfigError
from ...tiering.store.bundle.manifest import Manifest
from ...tiering.store.bundle.reader import Bundle
from ..checkpoints.describe import describe
from ..checkpoints.files.bounds import Bounds
from ..checkpoints.files.failures import reason
from ..checkpoints.files.json_file import read_object
from ..checkpoints.files.small_files import check_small_files
from ..checkpoints.meta_model import build_meta_model
from ..checkpoints.model_class import read_class, read_own_config
from ..checkpoints.source import Source
from ..tiers.placeholders import placeholder
from ..tiers.stored_weight import ClosedNumbers
from ..tiers.streamed_weight import StreamedWeight
from .stored_layout import check_stored


def bare_model(
    bundle: Bundle, trust_remote_code: bool, options: dict[str, Any], source: Source | None = None
) -> PreTrainedModel:
    """Build the model of ``bundle`` on placeholders, with transformers' own loading, which also sets up buffers and
    ties weights. Configuration and code are those of ``source``, which the bundle was packed from, or, without one,
    those that the bundle has. ``options`` go to ``from_pretrained``. Raises ConfigError for an unknown one, and
    CheckpointError."""
    verbosity = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config: PretrainedConfig | None = None
    try:
        folder = bundle.model_folder if source is None or not source.small_files else source.folder
        bare, config = build_bare(bundle.manifest, bundle.model_folder, trust_remote_code, source)
        check_stored(bare, bundle.manifest, bundle.folder)
        model: PreTrainedModel = type(bare).from_pretrained(
            None,
            config=config,
            state_dict={name: placeholder(t.dtype, tuple(t.shape)) for name, t in bare.state_dict().items()},
            dtype=bare.dtype,
            **options,
        )
        if (folder / "generation_config.json").is_file():
            model.generation_config = _generation_config(folder)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(_why_not(options, config, error)) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot build the model in {folder}: {reason(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
    # transformers and PEFT look at either; an adapter's file names the model that it belongs to.
    model.config.name_or_path = model.name_or_path = _name(folder, source)
    return model


def _generation_config(folder: Path) -> GenerationConfig:
    path = folder / "generation_config.json"
    read_object(path)
    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # it checks itself, in more ways than one
        raise CheckpointError(f"{path} cannot be used: {reason(error)}") from error


def _why_not(options: dict[str, Any], config: PretrainedConfig | None, error: TypeError) -> str:
    """Why transformers raised ``error`` of an unexpected keyword among ``options``."""
    settings = [name for name in options if config is not None and hasattr(config, name)]
    if settings:
        return f"load takes the configuration as it is; set {', '.join(settings)} in the checkpoint's config.json"
    return f"neither penstock nor transformers knows one of the options {', '.join(options)}: {reason(error)}"


def _name(folder: Path, source: Source | None) -> str:
    """The name that transformers gives a model whose small files lie in ``folder``: the hub id that the user gave, else
    the folder."""
    fetched = source is not None and folder == source.folder and not Path(source.name).expanduser().exists()
    return source.name if source is not None and fetched else str(folder)


def build_bare(
    manifest: Manifest, model_folder: Path, trust_remote_code: bool, source: Source | None = None
) -> tuple[PreTrainedModel, PretrainedConfig]:
    """The model of the bundle with ``manifest`` on the meta device, and its configuration: that of ``source``, or,
    without one, the one in ``model_folder``. Raises what ``bare_model`` raises."""
    dtype, own = dtype_of(manifest.dtype), None
    bounds = Bounds.of_tensors((spec.shape, spec.length) for block in manifest.blocks for spec in block.tensors)
    if source is None:
        try:
            check_small_files(model_folder, bounds)
            config = read_own_config(model_folder, trust_remote_code=trust_remote_code)
            own = read_class(model_folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"transformers cannot build the model in {model_folder}: {error}") from error
    else:
        config = copy.deepcopy(source.config)
    bare = build_meta_model(config, dtype, trust_remote_code=trust_remote_code, own=own, bounds=bounds)
    if describe(bare).tied and not manifest.tied:
        # The checkpoint has other weights than its configuration says, like transformers, which does not tie them then.
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        bare = build_meta_model(config, dtype, trust_remote_code=trust_remote_code, own=own, bounds=bounds)
    return bare, config


def dtype_of(name: torch.dtype | str | None) -> torch.dtype:
    """The dtype that is called ``name``, as in "bfloat16". Raises ConfigError."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f'dtype {name!r} is none that torch knows; write "bfloat16", "float32" or "auto"')
    return found


def move_out(model: nn.Module, manifest: Manifest, device: torch.device) -> None:
    """Replace the weights that the bundle holds by placeholders on ``device``, and move all others there."""
    stored = {spec.name for block in manifest.blocks for spec in block.tensors} | manifest.tied.keys()
    moved: dict[torch.Tensor, torch.Tensor] = {}  # by identity

    def there(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in stored:
            return _stand_in(tensor, device)
        if tensor.device == device:
            return tensor
        if tensor not in moved:
            moved[tensor] = _alike(tensor, tensor.detach().to(device))
        return moved[tensor]

    _replace(model, there)


def take_away(model: nn.Module, lies_in: Callable[[torch.Tensor], bool]) -> None:
    """Put weights that raise Closed in the place of the parameters and buffers of ``model`` of which ``lies_in`` says
    that they lie in memory that is given back."""
    gone: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by identity; shared ones stay shared

    def there(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, StreamedWeight):
            return tensor
        if not lies_in(tensor.planes[0] if isinstance(tensor, PackedWeight) else tensor):
            return tensor
        if id(tensor) not in gone:
            parameter, numbers = isinstance(tensor, nn.Parameter), ClosedNumbers(name)
            grads, shape, dtype = tensor.requires_grad, tuple(tensor.shape), tensor.dtype
            weight = StreamedWeight(numbers, shape, dtype, tensor.device, requires_grad=grads, is_parameter=parameter)
            gone[id(tensor)] = tensor, weight
        return gone[id(tensor)][1]

    _replace(model, there)


def _replace(model: nn.Module, by: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Replace each parameter and buffer of ``model`` by ``by(full name, tensor)``."""
    for path, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                found = None if tensor is None else by(f"{path}.{name}" if path else name, tensor)
                if found is not tensor:
                    own[name] = found


def _stand_in(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return _alike(tensor, placeholder(tensor.dtype, tuple(tensor.shape), device))


def _alike(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``other`` as a parameter if ``tensor`` is one."""
    return nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
