"""The tokenizer of a model, wherever its files come from."""

from pathlib import Path
from typing import Any

from torch import nn

from ...tiering.errors import CheckpointError
from ..checkpoints.files.failures import is_failure, reason
from ..checkpoints.files.hub import can_reach_hub
from ..config.config import Config
from .handle import handle
from .opening import ModelSource, OpenedModel, is_bundle, open_checkpoint, read_tokenizer

_PURPOSE = "a model of texts comes with one"


def tokenizer(model: nn.Module | str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """transformers' tokenizer of ``model``: one that penstock has loaded, or, as for ``load``, a checkpoint folder, a
    GGUF file, a hub id or a bundle folder. Of a hub id only the tokenizer is fetched.

    Raises CheckpointError if it has none, and ConfigError for a model that penstock has not loaded.
    """
    if isinstance(model, nn.Module):
        folder = handle(model).bundle / "model"
        return read_tokenizer(OpenedModel(folder, model.config, trust_remote_code), _PURPOSE)
    name = str(model)
    source = ModelSource(model=name, revision=revision, trust_remote_code=trust_remote_code)
    if is_bundle(name):
        folder = Path(name).expanduser() / "model"
        return read_tokenizer(OpenedModel(folder, None, trust_remote_code), _PURPOSE)
    if Path(name).expanduser().exists():
        checkpoint = open_checkpoint(source, Config.load().store.path)
        return read_tokenizer(
            OpenedModel(checkpoint.folder, checkpoint.config, trust_remote_code, checkpoint), _PURPOSE
        )
    return _fetch(source)


def _fetch(source: ModelSource) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.model,
            revision=source.revision or "main",
            trust_remote_code=source.trust_remote_code,
            local_files_only=not can_reach_hub(),
        )
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"there is no folder {source.model}, and no tokenizer of that name on the Hugging Face hub: {reason(error)}"
        ) from error
