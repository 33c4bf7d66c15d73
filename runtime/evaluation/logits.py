"""Logits of many positions in bounded memory: made a piece at a time, and kept on flash to be compared with others.

A text's logits are larger than most models: 4096 tokens of a vocabulary of 150,000 are 1.2 GB in bfloat16.
"""

import errno
import inspect
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from ...tiering.errors import EvaluationError, FlashFull
from ...tiering.units import format_size


def in_pieces(model: Any, ids: torch.Tensor, rows: int, take: Callable[[torch.Tensor], None]) -> None:
    """Run ``ids`` int64 [1, n] through ``model`` in one forward; ``take`` gets the logits [r, vocabulary] that follow
    each token but the last, in order, r being at most ``rows`` as far as the model allows.

    The layers run once. What comes after them (norms, the output layer, what a family does to its logits) runs for
    each piece, in a forward within the forward, whose layers are replaced by what they have given.
    """

    def logits_at(keep: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(ids, use_cache=False, logits_to_keep=keep).logits[0]
        return logits

    positions = torch.arange(ids.shape[1] - 1, device=ids.device)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        take(model(ids, use_cache=False).logits[0, :-1])
        return
    if len(positions) <= rows:
        take(logits_at(positions))
        return
    *before, last = torch.split(positions, rows)
    layers = model.get_decoder()
    divided = False

    def rest(_: Any, __: Any, hidden: Any) -> None:
        nonlocal divided
        divided = True
        hook.remove()
        own = vars(layers).get("forward")
        layers.forward = lambda *_, **__: hidden
        try:
            for piece in before:
                take(logits_at(piece))
        finally:
            del layers.forward
            if own is not None:
                layers.forward = own

    hook = layers.register_forward_hook(rest)
    try:
        end = logits_at(last)
    finally:
        hook.remove()
    # A family whose layers go by another name than transformers knows: all at once, which takes more memory.
    take(end if divided else logits_at(positions))


class KeptLogits:
    """The logits of ``rows`` positions in a file without a name, which nobody else can read and which is gone when
    this process is; every bit of them, in the dtype they came in. A context manager."""

    def __init__(self, folder: Path, rows: int) -> None:
        """``folder`` is made if need be. Raises EvaluationError if nothing can be written there."""
        self._folder, self._rows = folder, rows
        self._vocabulary, self._dtype = 0, torch.float32
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - this is a context manager itself
        except OSError as error:
            raise EvaluationError(
                f"the original's logits cannot be kept in {folder}: {error.strerror}; choose another store"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, logits: torch.Tensor) -> None:
        """Keep ``logits`` [r, vocabulary] behind those before. Raises FlashFull."""
        if not self._vocabulary:
            self._vocabulary, self._dtype = logits.shape[1], logits.dtype
            needed, free = self._rows * logits[0].nbytes, shutil.disk_usage(self._folder).free
            if needed > free:
                raise self._full(f"{format_size(needed)} are needed, {format_size(free)} are free")
        try:
            self._file.write(_bytes_of(logits.contiguous()))
            self._file.flush()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise EvaluationError(
                    f"the original's logits cannot be kept in {self._folder}: {error.strerror or error}; choose "
                    "another store"
                ) from error
            raise self._full(str(error.strerror)) from error

    def rewind(self) -> None:
        """Go back to the first."""
        self._file.seek(0)

    def read(self, rows: int) -> torch.Tensor:
        """The next ``rows`` of them [rows, vocabulary]. Raises EvaluationError where there are fewer."""
        logits = torch.empty(rows, self._vocabulary, dtype=self._dtype)
        found = self._file.readinto(_bytes_of(logits))
        if found != logits.nbytes:
            raise EvaluationError("the models were given other windows of the text; evaluate them anew")
        return logits

    def _full(self, why: str) -> FlashFull:
        return FlashFull(
            f"{self._folder} has no room for the original's logits of {self._rows} tokens ({why}); "
            "evaluate fewer tokens, or choose another store"
        )


def _bytes_of(tensor: torch.Tensor) -> Any:
    """The memory of a contiguous tensor."""
    return tensor.detach().view(torch.uint8).numpy()
