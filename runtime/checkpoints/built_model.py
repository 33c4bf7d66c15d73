"""A model that is built already as a source: its weights are in memory."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ...tiering.errors import CheckpointError
from ...tiering.progress import Progress, Quiet
from ...tiering.store.bundle.manifest import Block, TensorSpec
from .describe import Description, describe
from .files.model_files import ModelFiles, saved_files
from .model_class import REMOTE_MODULES, use_own_code, write_class
from .source import Source, SourceContents
from .weights import CHUNK, PlainWeights, pieces_of, split_bytes


@dataclass(frozen=True)
class BuiltModel(Source):
    """``model`` with its weights, in its own dtypes. Made by ``of``."""

    model: PreTrainedModel
    name: str
    config: PretrainedConfig

    @classmethod
    def of(cls, model: PreTrainedModel) -> "BuiltModel":
        """Raises CheckpointError for a model on the meta device."""
        for name, tensor in model.state_dict().items():
            if tensor.is_meta:
                raise CheckpointError(f"{name} is on the meta device: the model has no weights to pack")
        return cls(model, type(model).__name__, model.config)

    @property
    def content(self) -> tuple[Path, ...]:
        """None: it is in memory."""
        return ()

    def dtype(self) -> torch.dtype:
        """The model's."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def describe(self, dtype: torch.dtype | None = None, *, aligned: bool = False) -> Description:
        """The model as it is. ``dtype`` is its own."""
        addresses = {} if aligned else self._addresses()
        return Description(self.model, describe(self.model, addresses), self.dtype(), addresses)

    def digest(self, description: Description, store: Path, progress: Progress | None = None) -> str:
        """SHA-256 over the bytes of all weights."""
        progress = progress or Quiet()
        digest = hashlib.sha256()
        weights = BuiltWeights(self.model)
        progress.start("checking the weights", description.layout.total_bytes)
        for block in description.layout.blocks:
            for _, piece in pieces_of(block, weights):
                digest.update(piece)
            progress.advance(block.extent.length)
        progress.finish()
        return digest.hexdigest()

    def read(self, description: Description, memory: int) -> SourceContents:
        """The weights, at the addresses that they have."""
        return SourceContents(self.model, BuiltWeights(self.model), self._addresses())

    def model_files(self, *, untied: bool) -> ModelFiles:
        """The model's configurations and class, with the code if it came with some. It has no tokenizer."""
        return saved_files(self._save)

    def _save(self, folder: Path) -> None:
        own = type(self.model)
        self.model.config.save_pretrained(folder)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(folder)
        if own.__module__.startswith(REMOTE_MODULES):
            for each in (self.model, self.model.config):
                if type(each).__module__.startswith(REMOTE_MODULES):
                    custom_object_save(each, str(folder))
            use_own_code(folder / "config.json")
        write_class(own, folder)

    def _addresses(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self.model.state_dict().items()}


class BuiltWeights(PlainWeights):
    """The weights of a ``model`` that is in memory."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._tensors = model.state_dict()

    def pieces(self, spec: TensorSpec, expert: int | None) -> Iterator[memoryview]:
        """As WeightReader."""
        tensor = self._tensors[spec.name].detach()
        yield from split_bytes((tensor if expert is None else tensor[expert]).cpu().contiguous(), CHUNK)

    def expect(self, block: Block) -> None:
        """Nothing: all is there."""

    def close(self) -> None:
        """As WeightReader."""
        self._tensors = {}
