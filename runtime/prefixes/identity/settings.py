"""Describes what torch is set to, as far as it changes bits."""

import torch
from torch.utils._device import DeviceContext

from .unknown import Undescribed

_DENORMAL = 1e-42
"""A float32 number that is 0 where denormal numbers are flushed."""
_PRODUCTS = [("generic", "all"), ("mkldnn", "matmul"), ("cuda", "matmul")]
"""Backends and operations whose float32 products may be computed in fewer bits."""


def describe_settings(device: torch.device) -> dict[str, object]:
    """The settings of torch under which the calling thread would compute on ``device``, for JSON. Raises Undescribed
    inside of modes, which may change any operation."""
    _check_modes()
    kinds = dict.fromkeys(("cpu", device.type))
    return {
        "autocast": [[kind, str(torch.get_autocast_dtype(kind))] for kind in kinds if torch.is_autocast_enabled(kind)],
        "default dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "products": [torch._C._get_fp32_precision_getter(*each) for each in _PRODUCTS],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "denormals": bool(torch.tensor(_DENORMAL) * 1),
        "mkldnn": [torch._C._get_mkldnn_enabled(), torch._C._get_mkldnn_deterministic()],
        "sdp": [
            torch._C._get_flash_sdp_enabled(),
            torch._C._get_mem_efficient_sdp_enabled(),
            torch._C._get_math_sdp_enabled(),
            torch._C._get_cudnn_sdp_enabled(),
            *torch._C._get_sdp_priority_order(),
        ],
        "reduced": [torch._C._get_cublas_allow_bf16_reduced_precision_reduction()] if device.type == "cuda" else [],
    }


def _check_modes() -> None:
    """Raise Undescribed if a mode may change what operations do. ``torch.device`` as a context is no such mode."""
    if torch._C._len_torch_dispatch_stack():
        raise Undescribed("a torch dispatch mode")
    for number in range(torch._C._len_torch_function_stack()):
        mode = torch._C._get_function_stack_at(number)
        if not isinstance(mode, DeviceContext):
            raise Undescribed(f"the torch function mode {type(mode).__name__}")
