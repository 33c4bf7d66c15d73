"""GGUF files: configuration, tokenizer and weights as transformers has them, weights also in their own blocks.

``gguf_header`` reads the file's header; transformers knows which weight a tensor is, and what llama.cpp changed in it.
Where that is an order of rows, or nothing, a quantised weight can be stored in the file's own blocks.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from ....kernels.formats.gguf import GGUF
from ....kernels.formats.registry import FORMATS
from ....tiering.errors import CheckpointError
from .bounds import Bounds
from .failures import is_failure, reason
from .gguf_config import quiet_transformers, read_gguf_config
from .gguf_header import parse_gguf_header
from .gguf_hyperparameters import misfit, parts_of
from .gguf_metadata import header_given
from .gguf_types import GgufHeader, HeaderTensor
from .replaced import replaced
from .safetensors_file import SourceTensor

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GgufTensor(SourceTensor):
    """A tensor of a GGUF file: rows of blocks of the type ``kind``, in bytes; ``shape`` is that of its numbers, with
    the last dimension in a row."""

    kind: str

    @property
    def format(self) -> str | None:
        """The weight format that stores it as it is."""
        # Other names mean other bytes: MXFP4, for one, has its scales elsewhere.
        return next((format_.name for format_ in GGUF if format_.name == self.kind.lower()), None)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of blocks."""
        return self.length * self.shape[-1] // int(np.prod(self.shape))

    def part(self, index: int) -> "GgufTensor":
        """The slice ``index`` of the first dimension: one expert's matrix."""
        length = self.length // self.shape[0]
        offset = self.offset + index * length
        return GgufTensor(self.name, self.file, self.dtype, self.shape[1:], offset, length, self.kind)

    def numbers(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [rows, columns] from uint8 [rows, row_bytes]."""
        n, k = len(rows), self.shape[-1]
        if self.kind in _FLOATS:
            return rows.view(_FLOATS[self.kind]).float()
        if self.format is not None:
            made = torch.empty(n, k)
            FORMATS[self.format].decode([rows.view(-1)], n, k, slice(0, n), made)
            return made
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            return torch.from_numpy(dequantize(rows.numpy(), GGMLQuantizationType[self.kind]))
        except NotImplementedError as error:
            raise CheckpointError(f"{self.file}: {self.name} is of type {self.kind}, which gguf cannot read") from error


@dataclass(frozen=True)
class GgufFile:
    """The file at ``path``, of which ``header`` is all that is read. ``tensors`` are by the file's names. Configuration
    and tokenizer are made of the header when they are first asked for. Made by ``open``; nothing stays open."""

    path: Path
    header: GgufHeader
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Raises CheckpointError for a damaged file, and one of several parts; and where the ``gguf`` package is not
        installed."""
        if importlib.util.find_spec("gguf") is None:
            raise CheckpointError(
                f"{path} is a GGUF file, and reading it needs the gguf package: pip install 'penstock[gguf]'"
            )
        header = parse_gguf_header(path)
        if (wrong := misfit(header)) is not None:
            raise CheckpointError(f"{path} does not fit together: {wrong}; fetch it again")
        if parts_of(header) > 1:
            raise CheckpointError(f"{path} is one of several parts; merge them: llama-gguf-split --merge")
        return cls(path, header, {name: _tensor(path, tensor) for name, tensor in header.tensors.items()})

    @property
    def config(self) -> PretrainedConfig:
        """transformers' own. Raises CheckpointError for an architecture or values that it does not read."""
        return self._converted[0]

    @cached_property
    def _converted(self) -> tuple[PretrainedConfig, dict[str, Any]]:
        """The configuration, and what transformers made it of."""
        return read_gguf_config(self.path, self.header)

    @property
    def bounds(self) -> Bounds:
        """What its configuration may ask for."""
        return Bounds.of_tensors((tensor.shape, tensor.length) for tensor in self.tensors.values())

    def dtype(self) -> torch.dtype:
        """What its numbers are computed in: what matrices are in if they are not quantised, else bfloat16."""
        matrices = {tensor.kind for tensor in self.tensors.values() if len(tensor.shape) > 1}
        return _FLOATS[matrices.pop()] if len(matrices) == 1 and matrices <= _FLOATS.keys() else torch.bfloat16

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' own; None where the file has none. Raises CheckpointError."""
        if "tokenizer.ggml.model" not in self.header.values:
            return None
        try:
            with quiet_transformers(), header_given(self.path, self.header, self._converted[1]):
                return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except CheckpointError:
            raise
        except BaseException as error:
            if not is_failure(error):
                raise
            raise CheckpointError(f"{self.path}: transformers cannot read its tokenizer: {reason(error)}") from error

    def names(self, model: PreTrainedModel) -> dict[str, list[str]]:
        """The file's tensors of each weight of the skeleton ``model``; several are stacked, those of each expert."""
        import gguf
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        found: dict[str, list[str]] = {}
        expected = model.state_dict()
        try:
            # transformers asks for the same table for every module, which takes a hundredth of a second.
            with replaced(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)):
                names = get_gguf_hf_weights_map(model, self._processor())
        except Exception as error:  # an architecture or size that the gguf package has no names for
            raise CheckpointError(f"{self.path}: transformers cannot name its weights: {reason(error)}") from error
        for name, weight in names.items():
            for own in (name, f"{name}.weight"):
                if own in self.tensors and weight in expected:
                    found.setdefault(weight, []).append(own)
        for weight, tensors in found.items():
            # Both are mapped to one weight, which has the gate first.
            found[weight] = sorted(tensors, key=lambda name: "ffn_up_exps" in name)
        return found

    def row_order(self, tensor: GgufTensor) -> torch.Tensor | None:
        """int64 [rows]: which row of ``tensor`` each row of the weight is; None if more is changed than their order."""
        rows = np.arange(tensor.shape[0])
        pairs = np.stack((rows, rows), 1)
        try:
            changed = self._changed(pairs, tensor.name)
        except Exception:  # it reckons with more columns
            return None
        order = torch.from_numpy(np.array(changed))
        fits = order.shape == pairs.shape and torch.equal(order[:, 0], order[:, 1])
        return order[:, 0] if fits and torch.equal(order[:, 0].sort().values, torch.from_numpy(rows)) else None

    def changed(self, numbers: torch.Tensor, name: str) -> torch.Tensor:
        """The weight from the numbers of the tensor ``name``. Raises CheckpointError where they do not fit."""
        try:
            return torch.from_numpy(np.array(self._changed(numbers.numpy(), name)))
        except Exception as error:  # whatever numpy meets in shapes that do not fit
            architecture = self.header.values["general.architecture"]
            raise CheckpointError(
                f"{self.path}: {name}, {list(numbers.shape)}, does not fit {architecture}.attention.head_count and "
                f"what else it says of its sizes ({reason(error)}); fetch it again"
            ) from error

    def _changed(self, numbers: "np.ndarray[Any, Any]", name: str) -> "np.ndarray[Any, Any]":
        parsed: dict[str, dict[str, Any]] = {"tensors": {}}
        made = self._processor().process(weights=numbers, name=name, tensor_key_mapping={}, parsed_parameters=parsed)
        # Some put what they made there.
        return (
            made.weights if made.name is not None or not parsed["tensors"] else next(iter(parsed["tensors"].values()))
        )

    def _processor(self) -> Any:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        kind = TENSOR_PROCESSORS.get(self.header.values["general.architecture"], TensorProcessor)
        return kind(config=self._converted[1])


def _tensor(path: Path, tensor: HeaderTensor) -> GgufTensor:
    return GgufTensor(tensor.name, path, torch.uint8, tensor.shape, tensor.offset, tensor.length, tensor.kind)
