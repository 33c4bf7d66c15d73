"""A GGUF file as a source: weights in the file's own blocks where a weight format stores them, else their numbers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PretrainedConfig

from .describe import Description
from .files.bounds import WITHOUT_FILES, Bounds
from .files.gguf_file import GgufFile
from .files.model_files import ModelFiles, saved_files
from .gguf_weights import GgufWeights
from .source import Source, SourceContents, report_left_over


@dataclass(frozen=True)
class GgufSource(Source):
    """What is in ``file``. Made by ``open``."""

    file: GgufFile
    name: str
    config: PretrainedConfig
    folder: Path
    tokenizer_file: str | None
    bounds: Bounds = WITHOUT_FILES
    trust_remote_code: bool = False
    small_files: bool = False

    @classmethod
    def open(cls, path: Path) -> "GgufSource":
        """Raises CheckpointError, as GgufFile.open."""
        file = GgufFile.open(path)
        return cls(file, str(path), file.config, path.parent, path.name, bounds=file.bounds)

    @property
    def content(self) -> tuple[Path, ...]:
        """The file."""
        return (self.file.path,)

    def dtype(self) -> torch.dtype:
        """As GgufFile.dtype."""
        return self.file.dtype()

    def read(self, description: Description, memory: int) -> SourceContents:
        """As Source.read. A file has no addresses: transformers makes each weight anew."""
        weights = GgufWeights(description.model, self.file, description.layout)
        report_left_over(self.name, description.model, weights.left_over)
        return SourceContents(description.model, weights, {})

    def model_files(self, *, untied: bool) -> ModelFiles:
        """The configuration, and the tokenizer if the file has one."""
        return saved_files(self._save)

    def _save(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        GenerationConfig.from_model_config(self.config).save_pretrained(folder)
        self.file.save_tokenizer(folder)
