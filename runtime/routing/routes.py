"""Routing traces as files: which experts every token of a text went through, and how likely the routers found them.

A trace is one safetensors file: for every experts layer ``chosen.N`` and, where the router could be read off,
``probabilities.N``, and the lengths of forwards and sequences. What they belong to is JSON in the header, with a
checksum over all the rest. A trace tells about the text that it was made of: its file is readable by its owner only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...tiering.errors import TraceError
from ..tracing.tracefile import write
from .routed import STEPS, RoutedLayer, RoutedTokens

FORMAT = "penstock-routes"
VERSION = "1"


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
            routes = cls._of(json.loads(about), tensors)
        except (KeyError, TypeError, ValueError, IndexError) as error:
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
                    "probabilities": None if layer.codes is None else f"2**(-code/{STEPS})",
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
            tensors[f"chosen.{number}"] = layer.chosen
            if layer.codes is not None:
                tensors[f"probabilities.{number}"] = layer.codes
        return tensors

    @classmethod
    def _of(cls, about: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> "Routes":
        """From what a file holds; ValueError where the parts do not belong together."""
        layers = tuple(
            RoutedLayer(each["path"], each["experts"], tensors[f"chosen.{n}"], tensors.get(f"probabilities.{n}"))
            for n, each in enumerate(about["layers"])
        )
        forwards, sequences = tensors["forwards"].tolist(), tensors["sequences"].tolist()
        routes = cls(about["model_type"], about["text"], layers, tuple(forwards), tuple(sequences))
        if not layers or sum(sequences) != routes.tokens:
            raise ValueError("its sequences are not those of its forwards")
        for layer, each in zip(layers, about["layers"], strict=True):
            if layer.chosen.shape != (routes.tokens, each["top_k"]) or layer.chosen.max(initial=0) > layer.experts:
                raise ValueError(f"the experts chosen in {layer.path} are not {each['top_k']} of {layer.experts}")
            if layer.codes is not None and layer.codes.shape != (routes.tokens, layer.experts):
                raise ValueError(f"the probabilities of {layer.path} are not of {layer.experts} experts")
        return routes


def _read(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays and the header of a routing trace of this version. Raises TraceError."""
    try:
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
    except OSError as error:
        raise TraceError(f"the routing trace {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


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
