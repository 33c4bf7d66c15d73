"""A routing trace: which experts every token of a text went through, and how likely the routers found all of them.

On disk it is one safetensors file: for every experts layer ``chosen.N`` and, where the router could be read off,
``probabilities.N``, and the lengths of forwards and sequences. What they belong to is JSON in the header, with a
checksum over all the rest. A trace tells about the text that it was made of: its file is readable by its owner only.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...tiering.errors import TraceError
from ...tiering.units import BlockId
from ..tracing.tracefile import write

FORMAT = "penstock-routes"
VERSION = "1"

STEPS = 16
"""Codes of a probability for each factor of two."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RoutedLayer:
    """One experts layer: the module's ``path``, how many ``experts`` it has, and what the tokens chose of them."""

    path: str
    experts: int
    chosen: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
    """[tokens, top_k]; the number ``experts`` means that nothing was chosen."""
    codes: Codes | None
    """Router probabilities of all experts, [tokens, experts], as ``encode`` has them; None where the router's output
    could not be recognised."""

    @property
    def top_k(self) -> int:
        return int(self.chosen.shape[1])

    def probabilities(self) -> npt.NDArray[np.float32] | None:
        """Router probabilities of all experts, [tokens, experts]; see ``encode`` for how exact they are."""
        return None if self.codes is None else decode(self.codes)

    def used(self) -> npt.NDArray[np.bool_]:
        """[tokens, experts]: whether the token went through the expert."""
        table = np.zeros((len(self.chosen), self.experts + 1), dtype=np.bool_)
        np.put_along_axis(table, self.chosen.astype(np.int64), True, axis=1)
        return table[:, :-1]


@dataclass(frozen=True, slots=True)
class Routes:
    """A routing trace. All layers have the same tokens, in the order in which the model saw them."""

    model_type: str
    text: str
    """What the text is called."""
    layers: tuple[RoutedLayer, ...]
    forwards: tuple[int, ...]
    """Tokens of each forward: a prompt is one forward, a decoded token too."""
    sequences: tuple[int, ...]
    """Tokens of each sequence; a sequence begins where a forward does."""

    @property
    def tokens(self) -> int:
        return sum(self.forwards)

    def steps(self) -> Iterator[list[tuple[BlockId, ...]]]:
        """For each token, as if decoded one by one, the experts of each layer in ascending order."""
        tables = [
            ([BlockId("expert", layer.path, expert) for expert in range(layer.experts)], np.sort(layer.chosen).tolist())
            for layer in self.layers
        ]
        for token in range(self.tokens):
            yield [
                tuple(blocks[expert] for expert in dict.fromkeys(rows[token]) if expert < len(blocks))
                for blocks, rows in tables
            ]

    def uses_digest(self) -> str:
        """SHA-256 of how many tokens used each expert."""
        uses = [(layer.path, layer.used().sum(0).tolist()) for layer in self.layers]
        return hashlib.sha256(json.dumps(uses).encode()).hexdigest()

    def check_model(self, experts: Mapping[str, int], name: str) -> None:
        """Raise TraceError unless the model called ``name``, with ``experts`` experts by module path, is the kind of
        model that was recorded."""
        own = {layer.path: layer.experts for layer in self.layers}
        if own == dict(experts):
            return
        path = min(own.items() ^ experts.items())[0]
        raise TraceError(
            f"this routing trace is of another model ({self.model_type}): {path} has {own.get(path, 'no')} experts in "
            f"it, and {experts.get(path, 'no')} in {name}; record one of this model with: penstock profile"
        )

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


def encode(probabilities: npt.NDArray[np.float32]) -> Codes:
    """Probabilities in one byte each: 16 codes for each factor of two, so within 2.2 % down to 2 ** -15.9, and what is
    less counts as that."""
    with np.errstate(divide="ignore"):
        codes: Codes = np.clip(np.rint(-STEPS * np.log2(probabilities)), 0, 255).astype(np.uint8)
    return codes


def decode(codes: Codes) -> npt.NDArray[np.float32]:
    """The probabilities that ``encode`` was given, nearly."""
    return np.exp2(np.divide(codes, -STEPS, dtype=np.float32))


def narrow(chosen: npt.NDArray[np.integer[Any]], experts: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """``chosen`` in the least type that can say every expert, and none."""
    return chosen.astype(np.uint8) if experts <= 0xFF else chosen.astype(np.uint16)


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
