"""Embeddings that are read by row: a full-sized weight over sparse memory, in which only pages in use are filled in.

The module computes on a tensor of its usual shape, so its own code runs unchanged. An embedding is read this way only
if torch takes rows of it and nothing else: ``row_readable`` finds out by running it on the meta device. Rows for a
device are looked up in host memory and copied to the device.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...kernels.memory.arena import Arena
from ...kernels.weights.metadata_ops import LOOKS
from ...tiering.policy.placement.placement import row_cache_bytes
from ...tiering.store.bundle.manifest import Block
from ...tiering.store.bundle.reader import Bundle
from ...tiering.units import PAGE, MiB
from .placeholders import CPU, placeholder

_STEP = 4 * MiB


class _WatchRows(TorchFunctionMode):
    """Notes whether ``weight`` is used in another way than ``embedding(ids, weight)``."""

    def __init__(self, weight: torch.Tensor, ids: torch.Tensor) -> None:
        super().__init__()
        self._weight, self._ids = weight, ids
        self.looked_up, self.misused = False, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.embedding and len(args) > 1 and args[0] is self._ids and args[1] is self._weight:
            self.looked_up = True
        elif func not in LOOKS and any(value is self._weight for value in (*args, *kwargs.values())):
            self.misused = True
        return func(*args, **kwargs)


def row_readable(module: torch.nn.Module) -> bool:
    """Whether ``module`` is an embedding that takes only the rows that its first argument names."""
    if not isinstance(module, torch.nn.Embedding) or module.max_norm is not None:
        return False
    ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
    weight = torch.nn.Parameter(module.weight.detach().to("meta"), requires_grad=False)
    saved = dict(module._parameters)
    module._parameters["weight"] = weight
    try:
        with torch.no_grad(), _WatchRows(weight, ids) as watch:
            module(ids)
    except Exception:  # another signature, or buffers outside of the meta device: it is kept whole
        return False
    finally:
        module._parameters.update(saved)
    return watch.looked_up and not watch.misused


class _HostRows(torch.Tensor):
    """Looks like a weight on a device. Rows are taken from the weight in host memory that it stands for."""

    _weight: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, device: torch.device) -> "_HostRows":
        rows = placeholder(weight.dtype, tuple(weight.shape), device).as_subclass(cls)
        rows._weight = weight
        rows._is_param = True  # modules look whether a weight is a parameter
        return rows

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.embedding:  # by a module that was seen to do nothing else
            ids, rows, *others = args
            found: torch.Tensor = func(ids.cpu(), rows._weight, *others, **(kwargs or {}))
            return found.to(rows.device)
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


class RowReader:
    """The weight of one embedding block, [rows, width], filled in by row."""

    def __init__(self, bundle: Bundle, block: Block, device: torch.device = CPU) -> None:
        """Reads the block once to check it, and keeps a checksum of each page: every later read is checked against it.
        Rows are for ``device``. Raises BundleCorrupt and ReadError."""
        (self._spec,) = block.tensors
        self._bundle, self._block = bundle, block
        self._arena = Arena(block.extent.length, huge_pages=False)
        here = self._arena.tensor(self._spec.offset, getattr(torch, self._spec.dtype), self._spec.shape)
        host = torch.nn.Parameter(here, requires_grad=False)
        self.weight: torch.Tensor = host if device.type == "cpu" else _HostRows.of(host, device)
        self._row_bytes = self._spec.length // self._spec.shape[0]
        self._present = np.zeros(block.extent.length // PAGE, dtype=bool)
        self._keep = row_cache_bytes(block.extent.length)
        self._lock = threading.RLock()
        self._filled = False
        self.bytes_read, self.seconds = 0, 0.0
        self._checksums = self._check_all()

    @contextmanager
    def rows(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """The weight, in which the rows ``ids`` (any shape, integer) are filled in while the context lasts."""
        with self._lock:
            self._fill(ids)
            try:
                yield self.weight
            finally:
                if self.resident_bytes > self._keep:
                    self._clear()

    @contextmanager
    def host_rows(self, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        """As ``rows``, in host memory."""
        with self.rows(ids) as weight:
            yield weight._weight if isinstance(weight, _HostRows) else weight

    @contextmanager
    def turn(self) -> Iterator[None]:
        """In here, no other thread computes on this embedding, neither on rows nor on the whole weight."""
        with self._lock:
            yield

    def forget(self) -> None:
        """Give the rows in memory back to the system."""
        if self._filled:
            with self._lock:
                self._clear()

    def _clear(self) -> None:
        self._arena.discard(0, self._arena.length)
        self._present[:] = False
        self._filled = False

    @property
    def resident_bytes(self) -> int:
        """Bytes of rows in memory now."""
        return int(np.count_nonzero(self._present)) * PAGE

    def close(self) -> None:
        """Give the memory back, after a read that is under way: its file is closed next."""
        with self._lock:
            self._arena.close()

    def _fill(self, ids: torch.Tensor) -> None:
        rows = np.unique(ids.detach().reshape(-1).cpu().numpy())
        rows = rows[(rows >= 0) & (rows < self._spec.shape[0])]  # torch itself raises for the others
        start = (self._spec.offset + rows * self._row_bytes) // PAGE
        end = (self._spec.offset + (rows + 1) * self._row_bytes - 1) // PAGE
        span = int((end - start).max(initial=0)) + 1
        pages = np.unique(np.minimum(start[:, None] + np.arange(span), end[:, None]))
        missing = pages[~self._present[pages]]
        if not missing.size:
            return
        began = time.monotonic()
        for run in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1):
            self._read(int(run[0]), len(run))
        self._present[missing] = self._filled = True
        self.seconds += time.monotonic() - began

    def _read(self, first: int, count: int) -> None:
        into = self._arena.view(first * PAGE, count * PAGE)
        self._bundle.read_rows(self._block, first, into)
        self.bytes_read += count * PAGE
        for page in range(count):
            if xxhash.xxh3_64_intdigest(into[page * PAGE : (page + 1) * PAGE]) != self._checksums[first + page]:
                at = self._block.extent.offset + (first + page) * PAGE
                raise self._bundle.corrupt(self._block, f"is altered at offset {at}: its page does not match")

    def _check_all(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        length = self._block.extent.length
        checksums = np.empty(length // PAGE, dtype=np.uint64)
        whole = xxhash.xxh3_64()
        staging = Arena(min(_STEP, length))
        for offset in range(0, length, _STEP):
            view = staging.view(0, min(_STEP, length - offset))
            self._bundle.read_rows(self._block, offset // PAGE, view)
            whole.update(view)
            for page in range(len(view) // PAGE):
                checksums[offset // PAGE + page] = xxhash.xxh3_64_intdigest(view[page * PAGE : (page + 1) * PAGE])
        self.bytes_read += length
        if whole.hexdigest() != self._block.checksum:
            raise self._bundle.corrupt(self._block, "is altered: its checksum does not match")
        return checksums
