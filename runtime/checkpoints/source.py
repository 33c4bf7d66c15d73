"""The value that opening a checkpoint gives, the first stage of packing: one ``Source``, whatever kind it is.

Kinds differ here and nowhere later: a folder or hub id with safetensors, quantised or not (``checkpoint``), a GGUF file
(``gguf_file``), a model that is built already (``built_model``).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from ...tiering.progress import Progress
from .describe import Description, describe
from .files.bounds import WITHOUT_FILES, Bounds
from .files.digest import digest_files
from .files.model_files import ModelFiles, put_files
from .files.weights_files import list_some
from .meta_model import build_meta_model
from .weights import WeightReader


@dataclass(frozen=True)
class SourceContents:
    """What a source holds for a ``model``: its ``weights``, to be read and closed, and where transformers has them.

    ``addresses`` are those of weights that transformers takes as they are, by name. ``untied``: the source has
    different values for weights that its configuration ties, and ``model`` has them apart.
    """

    model: PreTrainedModel
    weights: WeightReader
    addresses: Mapping[str, int]
    untied: bool = False


def report_left_over(name: str, model: PreTrainedModel, left_over: Sequence[str]) -> None:
    """Warn of the tensors of the source ``name`` that no weight of ``model`` is made of, if there are any."""
    if left_over:
        names = list_some([*left_over])
        warnings.warn(f"{name} has tensors that a {type(model).__name__} does not use: {names}", stacklevel=2)


class Source(ABC):
    """A checkpoint of any kind, opened. Nothing stays open, and no weight is read before ``read``."""

    name: str
    """What the user calls it, for messages."""
    config: PretrainedConfig
    """transformers' own, as if no weight were quantised."""
    folder: Path
    """Where its small files lie."""
    bounds: Bounds = WITHOUT_FILES
    """What the configuration may ask for."""
    trust_remote_code: bool = False
    small_files: bool = True
    """Whether configuration and tokenizer are files in ``folder``, which may change while the weights do not."""
    converted: bool = False
    """Whether they are made of the file that has the weights."""

    @property
    @abstractmethod
    def content(self) -> tuple[Path, ...]:
        """Every file that decides what the model computes."""

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that its weights are meant to be loaded in."""

    @abstractmethod
    def read(self, description: Description, memory: int) -> SourceContents:
        """The contents for a model so described, read in at most ``memory`` bytes.

        Raises CheckpointError when weights are missing or misshapen, BudgetTooSmall.
        """

    def can_keep(self, folder: Path) -> bool:
        """Whether the model files, written to ``folder``, may stand for what is ``converted``, the next time."""
        return self.converted

    @abstractmethod
    def model_files(self, *, untied: bool) -> ModelFiles:
        """What a bundle's model folder holds; ``untied`` as in SourceContents. Raises CheckpointError."""

    def tokenizer(self) -> Any:
        """transformers' tokenizer. Raises CheckpointError, and whatever transformers raises."""
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)

    def write_model_files(self, folder: Path, *, untied: bool) -> None:
        """Write the model files to ``folder``. Raises CheckpointError, OSError."""
        put_files(folder, self.model_files(untied=untied))

    def describe(self, dtype: torch.dtype | None = None, *, aligned: bool = False) -> Description:
        """The model in ``dtype`` (None: its own), on the meta device. Raises CheckpointError when transformers has no
        causal model for it, UnplaceableModule.

        ``aligned``: transformers has every weight at a multiple of TENSOR_ALIGNMENT, as on a device.
        """
        dtype = dtype or self.dtype()
        model = build_meta_model(self.config, dtype, trust_remote_code=self.trust_remote_code, bounds=self.bounds)
        # Where weights lie in files is known when they are read: the layout does not tell yet.
        return Description(model, describe(model), dtype, marks=("aligned",) if aligned else ())

    def digest(self, description: Description, store: Path, progress: Progress | None = None) -> str:
        """SHA-256 of the content. What was digested before is looked up in ``store``. Raises CheckpointError."""
        return digest_files(self.content, store, progress)

    def weights_digest(self, store: Path, progress: Progress | None = None) -> str | None:
        """SHA-256 of what decides the weights alone; None where that is all of the content."""
        return None
