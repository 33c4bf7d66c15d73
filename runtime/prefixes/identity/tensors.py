"""Describes tensors by their content. Those that a model was installed with are known already; a changed one is found
by its version and by a sample of its numbers, since ``tensor.data`` hides changes from the version."""

import hashlib
import threading
from typing import NamedTuple

import torch
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


class TensorDigests:
    """The descriptions of one model's tensors. Thread-safe."""

    def __init__(self) -> None:
        self._seen = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def note(self, tensor: torch.Tensor) -> None:
        """``tensor`` has, as it is now, the numbers that the model's weights say: it needs no description."""
        with self._lock:
            self._seen[tensor] = _Seen(_version(tensor), _sample(tensor), "")

    def describe(self, tensor: torch.Tensor) -> str:
        """The dtype, shape and digest of ``tensor``; empty while it is as it was noted. Raises Undescribed."""
        with self._lock:
            seen = self._seen.get(tensor)
            version, sample = _version(tensor), _sample(tensor)
            if seen is None or seen[:2] != (version, sample):
                seen = self._seen[tensor] = _Seen(version, sample, _describe(tensor))
            text: str = seen.text
            return text


def _describe(tensor: torch.Tensor) -> str:
    if not _has_storage(tensor) or tensor.is_meta:
        raise Undescribed(f"a tensor of type {type(tensor).__name__} on {tensor.device}")
    whole = hashlib.blake2b(digest_size=16)
    flat = tensor.detach().reshape(-1)
    for piece in flat.split(max(1, _PIECE // tensor.element_size())):
        whole.update(_to_bytes(piece))
    return f"{tensor.dtype}{[*tensor.shape]}{whole.hexdigest()}"


def _sample(tensor: torch.Tensor) -> bytes:
    """Numbers of ``tensor``, all of them if they are few; none of a tensor that is not simply in host memory."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not _has_storage(tensor):
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
