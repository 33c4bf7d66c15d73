"""A device that is not the CPU, as far as torch and penstock can tell: its tensors refuse to meet others, have no
numpy, and lie at addresses that nobody can read. The CPU computes on them, operation by operation.

For a process of its own: torch has room for one backend that is not built in.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from penstock.kernels.devices.emulated import Emulated
from penstock.kernels.memory.arena import Arena

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend", 0)
_ELSEWHERE = 1 << 60
"""What is added to addresses: whoever reads there crashes."""
_CROSSING = ("copy_", "_to_copy", "index_put_")


class There(torch.Tensor):
    """``inner``, on the device."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "There":
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def as_subclass(self, cls: Any) -> Any:
        """For what is only looked at."""
        looked_at = type(cls.__name__, (cls,), {"__torch_dispatch__": There.__torch_dispatch__})
        return torch.Tensor._make_wrapper_subclass(looked_at, self.shape, dtype=self.dtype, device=DEVICE)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr() + _ELSEWHERE


class Pretend(TorchDispatchMode):
    """In here, torch makes tensors on DEVICE too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, There)]
    name = func.overloadpacket.__name__
    if there and name not in _CROSSING and any(not isinstance(each, There) and each.dim() for each in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    on_device = bool(there)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == DEVICE.type
        if on_device:
            kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    inside = tree_map(lambda each: each.inner if isinstance(each, There) else each, (args, kwargs))
    out = func(*inside[0], **inside[1])
    if name == "copy_":
        return args[0]

    def outside(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        changed = [tensor for tensor in there if tensor.inner is each]
        return changed[0] if changed else There(each)

    return tree_map(outside, out) if on_device else out


_tensor = torch.tensor


def _made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """``torch.tensor``, whose own way goes past dispatch modes."""
    made = _tensor(*args, **kwargs)
    return made if device is None else made.to(device)


_made.__module__ = "torch"  # for a real device it would be torch's own
torch.tensor = _made


class _PretendArena:
    def __init__(self, length: int) -> None:
        self._memory = Arena(length)
        self.length, self.address = length, self._memory.address + _ELSEWHERE

    def tensor(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        return There(self._memory.tensor(offset, dtype, shape))

    def discard(self, offset: int, length: int) -> None:
        self._memory.discard(offset, length)

    def close(self) -> None:
        self._memory.close()


class PretendDevice(Emulated):
    """DEVICE for penstock."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, size=1 << 40)
        self.compute = DEVICE

    def arena(self, length: int) -> Any:
        return _PretendArena(length)
