"""A GGUF file as a source: weights in the file's own blocks where a weight format stores them, else their numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig

from ...tiering.errors import CheckpointError
from .describe import Description
from .files.bounds import WITHOUT_FILES, Bounds
from .files.failures import is_failure
from .files.gguf_file import GgufFile
from .files.kept_conversion import find_kept
from .files.model_files import ModelFiles, saved_files
from .files.small_files import check_small_files
from .gguf_weights import GgufWeights
from .model_class import read_own_config
from .source import Source, SourceContents, report_left_over


@dataclass(frozen=True)
class GgufSource(Source):
    """The content of ``file``. ``open`` makes it. ``kept`` is the model folder of a bundle, with configuration and
    tokenizer that were converted before."""

    file: GgufFile
    name: str
    config: PretrainedConfig
    folder: Path
    kept: Path | None
    bounds: Bounds = WITHOUT_FILES
    trust_remote_code: bool = False
    small_files: bool = False
    converted: bool = True

    @classmethod
    def open(cls, path: Path, store: Path | None = None) -> "GgufSource":
        """Open the file at ``path``, of which a bundle in ``store`` may have the conversion. Raises CheckpointError for
        a file that is damaged, or of an architecture that transformers does not read, and as GgufFile.open."""
        file = GgufFile.open(path)
        kept = None if store is None else find_kept(store, path)
        config = None if kept is None else _read_kept(kept, file.bounds)
        if kept is None or config is None:
            return cls(file, str(path), file.config, path.parent, None, bounds=file.bounds)
        return cls(file, str(path), config, kept, kept, bounds=file.bounds)

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

    def tokenizer(self) -> Any:
        """As Source.tokenizer."""
        if self.kept is not None:
            return super().tokenizer()
        if self.file.tokenizer is None:
            raise CheckpointError(f"{self.file.path} has no tokenizer")
        return self.file.tokenizer

    def model_files(self, *, untied: bool) -> ModelFiles:
        """The configuration, and the tokenizer if the file has one."""
        if self.kept is not None:
            return {path.name: path for path in sorted(self.kept.iterdir()) if path.is_file()}
        return saved_files(self._save)

    def can_keep(self, folder: Path) -> bool:
        """Whether the model files in ``folder`` may stand for the conversion: the tokenizer that transformers reads
        there is the one that it makes of the file. Of some classes it is not."""
        made = None if self.kept is not None else self.file.tokenizer
        if made is None:
            return True
        try:
            read = AutoTokenizer.from_pretrained(folder)
            return _describe_tokenizer(read) == _describe_tokenizer(made)
        except BaseException as error:
            if not is_failure(error):
                raise
            return False

    def _save(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        GenerationConfig.from_model_config(self.config).save_pretrained(folder)
        if self.file.tokenizer is not None:
            self.file.tokenizer.save_pretrained(folder)


def _describe_tokenizer(tokenizer: Any) -> tuple[Any, ...]:
    """All that decides which tokens a text has, and which text they have."""
    backend = tokenizer.backend_tokenizer.to_str()
    return backend, tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer.padding_side


def _read_kept(folder: Path, bounds: Bounds) -> PretrainedConfig | None:
    """The configuration in ``folder``; None if it is not to be used, and must be converted again."""
    try:
        check_small_files(folder, bounds)
        return read_own_config(folder, trust_remote_code=False)
    except BaseException as error:
        if not is_failure(error):
            raise
        return None
