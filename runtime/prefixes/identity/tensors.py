"""Describes tensors by their content. Those that a model was installed with are known already; a changed one is found
by its version and by a sample of its numbers, since ``tensor.data`` hides changes from the version."""

import hashlib
import threading
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from .unknown import Undescribed

SMALL = 1 << 16
"""Bytes up to which a tensor is read as a whole each time."""
_SAMPLE = 64
_PIECE = 64 << 20


class _Seen(NamedTuple):
    version: int
    sample: bytes
    text: str
    is_stored: bool
    """Whether it has the numbers of the model's weights."""


class TensorDigests:
    """The descriptions of one model's tensors. Thread-safe."""

    def __init__(self) -> None:
        self._seen: Any = WeakTensorKeyDictionary()
        self._places: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def note(self, module: nn.Module, name: str, path: str, tensor: torch.Tensor | None) -> None:
        """The parameter ``name`` of ``module`` has the numbers that the model's weights have under the name ``path``:
        those of ``tensor`` as they are now; None: it is streamed."""
        self._places.setdefault(module, {})[name] = f"stored as {path}"
        if tensor is not None:
            with self._lock:
                self._seen[tensor] = _Seen(_version(tensor), _sample(tensor), f"stored as {path}", True)

    def describe_parameter(self, module: nn.Module, name: str, tensor: torch.Tensor, *, streamed: bool) -> str:
        """The parameter ``name`` of ``module``, which is ``tensor``: where it is stored, while it is as it was noted.
        Raises Undescribed."""
        place = self._places.get(module, {}).get(name)
        if place is not None and (streamed or self._look(tensor).is_stored):
            return place
        return self.describe(tensor)

    def describe(self, tensor: torch.Tensor) -> str:
        """The dtype, shape and digest of ``tensor``; where it is stored, while it is as it was noted. Raises
        Undescribed."""
        return self._look(tensor).text

    def _look(self, tensor: torch.Tensor) -> "_Seen":
        with self._lock:
            seen: _Seen | None = self._seen.get(tensor)
            version, sample = _version(tensor), _sample(tensor)
            if seen is None or seen[:2] != (version, sample):
                seen = self._seen[tensor] = _Seen(version, sample, _describe(tensor), False)
            return seen


def _describe(tensor: torch.Tensor) -> str:
    if not _has_storage(tensor) or tensor.is_meta:
        raise Undescribed(f"a tensor of type {type(tensor).__name__} on {tensor.device}")
    whole = hashlib.blake2b(digest_size=16)
    flat = tensor.detach().reshape(-1)
    each = max(1, _PIECE // tensor.element_size())
    for start in range(0, flat.numel(), each):
        whole.update(_to_bytes(flat[start : start + each]))
    return f"{tensor.dtype}{[*tensor.shape]}{whole.hexdigest()}"


def _sample(tensor: torch.Tensor) -> bytes:
    """Numbers of ``tensor``, all of them if they are few; none of a tensor that is not simply in memory."""
    if tensor.is_meta or tensor.layout is not torch.strided or not _has_storage(tensor):
        return b""
    flat = tensor.detach()
    if tensor.nbytes > SMALL:
        if not flat.is_contiguous():
            return b""
        flat = flat.view(-1)[:: max(1, flat.numel() // _SAMPLE)]
    content = _to_bytes(flat.reshape(-1))
    return content if len(content) <= 1024 else hashlib.blake2b(content, digest_size=16).digest()


def _has_storage(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is not made of others."""
    return type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _to_bytes(flat: torch.Tensor) -> bytes:
    with torch._C.DisableTorchFunctionSubclass():
        return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
