"""A safetensors checkpoint, opened: its configuration and where each tensor lies; never pickle, never code unasked."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from ...tiering.errors import CheckpointError
from .quantised import quantised
from .safetensors_file import SourceTensor, parse_header

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_PATTERNS = ("*.safetensors", "*.json", "tokenizer*", "vocab*", "merges*", "chat_template*", "*.model", "*.txt")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """``folder`` holds it; ``config`` is transformers' own; ``files`` are the weights files and ``tensors`` all weights
    in them by name, quantised ones as QuantisedTensor. Made by ``open``, which checks every header; nothing stays
    open."""

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        files: tuple[Path, ...],
        tensors: Mapping[str, SourceTensor],
        *,
        trust_remote_code: bool,
    ) -> None:
        self.folder = folder
        self.config = config
        self.files = files
        self.tensors = tensors
        self.trust_remote_code = trust_remote_code

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
        folder = _find(source, revision, trust_remote_code, quiet)
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
            tensors = quantised(tensors, quantisation)
        return cls(folder, config, files, tensors, trust_remote_code=trust_remote_code)

    tokenizer_file: str | None = None
    """None: the tokenizer has files of its own, in ``folder``."""

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


def _find(source: str | Path, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of a checkpoint (config.json and *.safetensors)")
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"there is no folder {path}, and it is not a model's id on the Hugging Face hub either")
    return _download(source, revision, trust_remote_code, quiet)


def _download(name: str, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    """The folder with the hub's model ``name``; weights that are not safetensors are not fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | ({"disable": True} if quiet else {}))  # type: ignore[no-untyped-call]

    patterns = [*_HUB_PATTERNS, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, tqdm_class=Bar))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"there is no folder {name}, and no model of that name could be fetched from the Hugging Face hub: {reason}"
        ) from error


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
