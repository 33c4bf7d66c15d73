"""A safetensors checkpoint, opened: its configuration and where each tensor lies; never pickle, never code unasked."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ...tiering.errors import CheckpointError
from .describe import Description, describe
from .hub import find_folder
from .meta_model import build_meta_model
from .model_files import copy_model_files
from .quantised import gather_quantised
from .quantised_weights import QuantisedWeights
from .safetensors_file import SourceTensor, parse_header
from .source import Source, SourceContents

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint(Source):
    """Safetensors in ``folder``: ``files`` are the weights files, ``tensors`` all weights in them by name.

    Quantised weights are QuantisedTensor. Made by ``open``, which checks every header.
    """

    folder: Path
    config: PretrainedConfig
    files: tuple[Path, ...]
    tensors: Mapping[str, SourceTensor]
    name: str
    trust_remote_code: bool = False

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        quiet: bool = True,
    ) -> "Checkpoint":
        """Open the folder ``source``, or fetch it when it is a model's id on the hub, with the hub's own progress bars
        unless ``quiet``.

        Raises CheckpointError when there is none, when it holds no safetensors weights, or when they are damaged.
        """
        folder = find_folder(source, revision, trust_remote_code, quiet)
        config, quantisation = _read_config(folder, trust_remote_code)
        files = _weights_files(folder, config)
        tensors: dict[str, SourceTensor] = {}
        for file in files:
            # A later file wins, as in transformers.
            tensors |= parse_header(file)
        if (index := folder / _INDEX) in (folder / name for name in _expected(folder, config)):
            absent = [name for name in _read_index(index) if name not in tensors]
            if absent:
                raise CheckpointError(
                    f"{index} names tensors that are in no file: {_some(absent)}; fetch the checkpoint again"
                )
        if quantisation is not None:
            tensors = gather_quantised(tensors, quantisation)
        return cls(folder, config, files, tensors, str(source), trust_remote_code)

    def dtype(self) -> torch.dtype:
        """What transformers takes for ``dtype="auto"``: the configured one, else that of the first floating tensor."""
        configured = getattr(self.config, "dtype", None)
        if isinstance(configured, str):
            configured = getattr(torch, configured, None)
        if isinstance(configured, torch.dtype):
            return configured
        floating = (tensor.dtype for tensor in self.tensors.values() if tensor.dtype.is_floating_point)
        return next(floating, torch.float32)

    @property
    def content(self) -> tuple[Path, ...]:
        """Every file that decides what the model computes."""
        code = sorted(self.folder.glob("*.py")) if self.trust_remote_code else []
        return (*self.files, self.folder / "config.json", *code)

    def read(self, description: Description, memory: int) -> SourceContents:
        """As Source.read."""
        model, layout, untied = description.model, description.layout, False
        weights = QuantisedWeights(model, self.tensors, layout, memory=memory)
        if weights.contradictions():
            # Like transformers, which does not tie weights for which the checkpoint has different values.
            weights.close()
            model, untied = self._untied(description.dtype), True
            weights = QuantisedWeights(model, self.tensors, describe(model), memory=memory)
            if differing := weights.contradictions():
                one, other = differing[0]
                raise CheckpointError(
                    f"the model shares one weight between {one} and {other}, the checkpoint has two for them"
                )
        return SourceContents(model, weights, weights.addresses(), untied)

    def write_model_files(self, folder: Path, *, untied: bool) -> None:
        """Copy configuration and tokenizer."""
        copy_model_files(self.folder, folder, untied)

    def _untied(self, dtype: torch.dtype) -> PreTrainedModel:
        config = copy.deepcopy(self.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        return build_meta_model(config, dtype, trust_remote_code=self.trust_remote_code)


def _read_config(folder: Path, trust_remote_code: bool) -> tuple[PretrainedConfig, dict[str, Any] | None]:
    """The configuration as if the weights were not quantised, and how they are."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # configurations check themselves, each in its own way
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None:
        return config, None
    del config.quantization_config
    return config, quantisation if isinstance(quantisation, dict) else quantisation.to_dict()


def _expected(folder: Path, config: PretrainedConfig) -> list[str]:
    """Names of the weights file or index to look at: one, or none when nothing is there."""
    explicit = getattr(config, "transformers_weights", None)
    names = [explicit] if isinstance(explicit, str) and _plain(explicit) else [_SINGLE, _INDEX]
    return [name for name in names if (folder / name).is_file()][:1]


def _weights_files(folder: Path, config: PretrainedConfig) -> tuple[Path, ...]:
    for name in _expected(folder, config):
        if name.endswith(".safetensors"):
            return (folder / name,)
        if name.endswith(".index.json"):
            return _shards(folder / name)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights as pickle ({_some(pickles)}), which can run code when it is read; "
            "penstock reads safetensors only: convert it with transformers' save_pretrained"
        )
    if (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} is an adapter, not a model; merge it into its base model first")
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f"; {_some(others)} is there, but no {_INDEX}" if others else ""
    raise CheckpointError(f"{folder} is not a checkpoint: it has no {_SINGLE}{hint}")


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(_read_index(index).values()))
    odd = [name for name in names if not _plain(name)]
    if odd:
        raise CheckpointError(f"{index} names files outside of its folder: {_some(odd)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {_some(missing)}, which its index names; fetch the checkpoint again"
        )
    return tuple(index.parent / name for name in names)


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("weight_map is empty")
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("weight_map must map names to file names")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}); fetch the checkpoint again") from error
    return weight_map


def _plain(name: str) -> bool:
    """Whether ``name`` stays inside the folder that it is looked up in."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _some(names: list[str]) -> str:
    """At most five names for a message."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
