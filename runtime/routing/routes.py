"""Routing traces as files: which experts every token of a text went through, and how likely the routers found them.

A trace is one safetensors file: for every experts layer ``chosen.N`` and, where the router could be read off,
``probabilities.N``, and the lengths of forwards and sequences. What they belong to is JSON in the header, with a
checksum over all the rest. A trace tells about the text that it was made of: its file is readable by its owner only.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...kernels.io.regular import open_regular
from ...tiering.driving.strict_json import Fields, parse_json
from ...tiering.errors import TraceError
from ..tracing.tracefile import write
from .routed import STEPS, RoutedLayer, RoutedTokens, narrow

FORMAT = "penstock-routes"
VERSION = "1"

_SCALE = f"2**(-code/{STEPS})"
_TEXT = r"[^\0-\x1f\x7f]{0,4096}"
_LAYERS = 1 << 14
_TABLE = 1 << 30
"""Most tokens times experts of a layer: two million tokens through 512 experts."""
_LARGEST = 16 << 30
"""Most bytes of a trace: 60 layers of 256 experts, a million tokens."""


@dataclass(frozen=True, slots=True)
class Routes(RoutedTokens):
    """A routing trace."""

    def save(self, path: Path) -> None:
        """Replace the file ``path`` by this trace, readable by this user only. Raises TraceError."""
        tensors = self._tensors()
        about = json.dumps(self._about(), sort_keys=True)
        header = {"format": FORMAT, "version": VERSION, "about": about, "checksum": _checksum(about, tensors)}
        write(path, [save(tensors, header)])

    @classmethod
    def load(cls, path: str | Path) -> "Routes":
        """The trace in the file ``path``. Raises TraceError when it cannot be read, is no routing trace, one of
        another version, truncated, altered or empty."""
        tensors, header = _read(Path(path).expanduser())
        about = header.get("about", "")
        if header.get("checksum") != _checksum(about, tensors):
            raise _damaged(path, "its checksum is wrong")
        try:
            routes = cls._of(parse_json(about), tensors)
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if not routes.tokens:
            raise TraceError(f"{path} is a routing trace without a token; record a longer text with: penstock profile")
        return routes

    def _about(self) -> dict[str, Any]:
        """What the header says of the model and the text."""
        return {
            "model_type": self.model_type,
            "text": self.text,
            "layers": [
                {
                    "path": layer.path,
                    "experts": layer.experts,
                    "top_k": layer.top_k,
                    "probabilities": None if layer.codes is None else _SCALE,
                }
                for layer in self.layers
            ],
        }

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        tensors: dict[str, npt.NDArray[Any]] = {
            "forwards": np.array(self.forwards, dtype=np.uint32),
            "sequences": np.array(self.sequences, dtype=np.uint32),
        }
        for number, layer in enumerate(self.layers):
            tensors[f"chosen.{number}"] = narrow(layer.chosen, layer.experts)
            if layer.codes is not None:
                tensors[f"probabilities.{number}"] = layer.codes
        return tensors

    @classmethod
    def _of(cls, about: object, tensors: Mapping[str, npt.NDArray[Any]]) -> "Routes":
        """From what a file holds; ValueError where the parts are not as they should be, or do not belong together."""
        fields, left = Fields(about), dict(tensors)
        model_type, name = fields.text("model_type", _TEXT), fields.text("text", _TEXT)
        forwards, sequences = (_counts(left, each) for each in ("forwards", "sequences"))
        tokens = sum(forwards)
        described = fields.many("layers", lambda each: each, _LAYERS)
        layers = tuple(_layer(each, left, number, tokens) for number, each in enumerate(described))
        fields.end()
        if left:
            raise ValueError(f"{min(left)} belongs to nothing")
        if not layers or sum(sequences) != tokens:
            raise ValueError("its sequences are not those of its forwards")
        if len({layer.path for layer in layers}) != len(layers):
            raise ValueError("it has a layer twice")
        return cls(model_type, name, layers, forwards, sequences)


def _counts(left: dict[str, npt.NDArray[Any]], name: str) -> tuple[int, ...]:
    """Numbers of tokens, taken out of ``left``. Raises ValueError."""
    found = left.pop(name, None)
    if found is None or found.dtype != np.uint32 or found.ndim != 1:
        raise ValueError(f"{name} is missing, or no list of counts")
    return tuple(found.tolist())


def _layer(about: object, left: dict[str, npt.NDArray[Any]], number: int, tokens: int) -> RoutedLayer:
    """A layer of a trace of ``tokens`` tokens, its arrays taken out of ``left``. Raises ValueError."""
    fields = Fields(about)
    path, experts = fields.text("path", _TEXT), fields.whole("experts", 1, 0xFFFF - 1)
    top_k, scale = fields.whole("top_k", 1, experts), fields.take("probabilities")
    fields.end()
    chosen = left.pop(f"chosen.{number}", None)
    kind = np.uint8 if experts <= 0xFF else np.uint16
    if chosen is None or chosen.dtype != kind or chosen.shape != (tokens, top_k) or chosen.max(initial=0) > experts:
        raise ValueError(f"the experts chosen in {path} are not {top_k} of {experts}")
    # A table of all experts is made of what few chose.
    if tokens * (experts + 1) > _TABLE:
        raise ValueError(f"{tokens} tokens and {experts} experts are more than a trace may have")
    codes = left.pop(f"probabilities.{number}", None)
    if scale != (None if codes is None else _SCALE):
        raise ValueError(f"the probabilities of {path} are of an unknown scale")
    if codes is not None and (codes.dtype != np.uint8 or codes.shape != (tokens, experts)):
        raise ValueError(f"the probabilities of {path} are not of {experts} experts")
    return RoutedLayer(path, experts, chosen, codes)


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays and the header of a routing trace of this version. Raises TraceError."""
    try:
        _check_file(path)
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise TraceError(f"{path} is no routing trace; penstock profile writes one with --out")
            if header.get("version") != VERSION:
                raise TraceError(
                    f"{path} is a routing trace of version {header.get('version')}, this penstock reads version "
                    f"{VERSION}; record it again with penstock profile"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - it is no mapping
    except (MemoryError, TypeError, ValueError, AttributeError) as error:  # of types that numpy does not have, too
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise TraceError(f"the routing trace {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _check_file(path: Path) -> None:
    """Raise OSError unless ``path`` is a file, and not too long. safetensors would wait for a pipe."""
    descriptor = open_regular(path, os.O_RDONLY)
    try:
        if os.fstat(descriptor).st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"it has more than {_LARGEST} bytes", str(path))
    finally:
        os.close(descriptor)


def _checksum(about: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over the header's description and all arrays."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _damaged(path: str | Path, what: str) -> TraceError:
    return TraceError(
        f"{path} is a truncated or damaged routing trace ({what}), or none; record it again with: penstock profile"
    )
