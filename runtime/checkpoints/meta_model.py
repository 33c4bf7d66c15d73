"""The model without its weights: built on the meta device, with the dtypes that loading gives every weight."""

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers import initialization as hf_initialization
from transformers.core_model_loading import build_glob_alternation

from ...kernels.process.interrupts import SHIELD, calls_others
from ...tiering.errors import CheckpointError
from .counted import check_experts, counted
from .files.bounds import WITHOUT_FILES, Bounds
from .files.failures import reason
from .hub_code import refuse_hub_code
from .model_class import own_model_class


def build_meta_model(
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    own: type[PreTrainedModel] | None = None,
    bounds: Bounds = WITHOUT_FILES,
) -> PreTrainedModel:
    """The causal model that ``config`` describes, or the model of the class ``own``, on the meta device, tied;
    ``config`` stays as it is.

    Raises CheckpointError when transformers has no causal model for it, when it is larger than ``bounds``, and when its
    configuration names code on the hub that is not trusted.
    """
    if not trust_remote_code:
        refuse_hub_code(config)
    try:
        with (
            SHIELD,  # an interrupt between two of these would leave torch or transformers changed
            counted(bounds, config.model_type),
            torch.device("meta"),
            hf_initialization.no_init_weights(),
            hf_initialization.meta_device_safe_creation_ops(),
        ):
            model = _build(copy.deepcopy(config), dtype, trust_remote_code, own)
    except CheckpointError:
        raise
    except Exception as error:  # every architecture has its own way to object to a configuration
        raise CheckpointError(
            f"transformers cannot build a causal language model of type {config.model_type!r}: {reason(error)}"
        ) from error
    check_experts(model, bounds, config.model_type)
    model.tie_weights()
    _apply_dtype_plan(model, dtype)
    return model.eval()


@calls_others
def _build(
    config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool, own: type[PreTrainedModel] | None
) -> PreTrainedModel:
    if own is None and trust_remote_code:
        own = own_model_class(config)
    if own is not None:
        return own._from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


def _apply_dtype_plan(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the weights that a model keeps in float32 that dtype, as ``from_pretrained`` does while it loads."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, key_of_group, _ = build_glob_alternation(list(plan))
    replaced: dict[int, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        match = pattern.search(name)
        if match is None or match.lastgroup is None:
            continue
        wanted = plan[key_of_group[match.lastgroup]]
        path, _, own_name = name.rpartition(".")
        module = model.get_submodule(path)
        if id(tensor) not in replaced:
            cast = tensor.detach().to(wanted)
            is_parameter = isinstance(tensor, nn.Parameter)
            replaced[id(tensor)] = nn.Parameter(cast, requires_grad=cast.is_floating_point()) if is_parameter else cast
        setattr(module, own_name, replaced[id(tensor)])
