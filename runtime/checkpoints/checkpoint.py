"""A safetensors checkpoint, opened: its configuration and where each tensor lies; never pickle, never code unasked."""

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ...tiering.errors import CheckpointError
from ...tiering.progress import Progress
from .describe import Description, describe
from .files.bounds import WITHOUT_FILES, Bounds
from .files.content import Content, read_raw_config
from .files.failures import reason
from .files.hub import find_folder
from .files.model_files import ModelFiles, checkpoint_files
from .files.safetensors_file import SourceTensor, parse_header, read_tensor
from .files.small_files import check_small_files
from .files.weights_files import find_weights, list_some
from .meta_model import build_meta_model
from .model_class import read_own_config
from .quantisation.account import account_for
from .quantisation.quantisations import gather_quantised
from .quantisation.quantised_tensor import QuantisedTensor
from .quantised_weights import QuantisedWeights
from .source import Source, SourceContents, report_left_over


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
    bounds: Bounds = WITHOUT_FILES
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
        raw = read_raw_config(folder)
        files = find_weights(folder, raw.get("transformers_weights"))
        tensors: dict[str, SourceTensor] = {}
        for file in files:
            # A later file wins, as in transformers.
            tensors |= parse_header(file)
        bounds = Bounds.of_tensors((tensor.shape, tensor.length) for tensor in tensors.values())
        check_small_files(folder, bounds)
        config, quantisation = _read_config(folder, trust_remote_code)
        tensors = gather_quantised(tensors, quantisation, read_tensor)
        return cls(folder, config, files, tensors, str(source), bounds, trust_remote_code)

    def dtype(self) -> torch.dtype:
        """What transformers takes for ``dtype="auto"``: the configured one, else that of the first floating tensor."""
        configured = getattr(self.config, "dtype", None)
        if isinstance(configured, str):
            configured = getattr(torch, configured, None)
        if isinstance(configured, torch.dtype):
            return configured
        dtypes = (tensor.dtype for tensor in self.tensors.values())
        return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)

    @property
    def content(self) -> tuple[Path, ...]:
        """Every file that decides what the model computes."""
        return self._content.content

    @property
    def _content(self) -> Content:
        return Content(self.files, self.folder, self.trust_remote_code)

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
        self._report(model, weights.used)
        return SourceContents(model, weights, weights.addresses(), untied)

    def model_files(self, *, untied: bool) -> ModelFiles:
        """Configuration, tokenizer and the like; code if it is trusted."""
        return checkpoint_files(self.folder, untied, code=self.trust_remote_code)

    def weights_digest(self, store: Path, progress: Progress | None = None) -> str | None:
        """As Source."""
        return self._content.weights_digest(store, progress)

    def _report(self, model: PreTrainedModel, used: Set[str]) -> None:
        """Say what of the checkpoint no weight of ``model`` is made of, as transformers does. Raises CheckpointError
        for what says something about a weight, and was not understood."""
        quantised = any(isinstance(tensor, QuantisedTensor) for tensor in self.tensors.values())
        useless = model._keys_to_ignore_on_load_unexpected or ()
        account = account_for(self.tensors, used, useless, quantised=quantised)
        if account.lost:
            raise CheckpointError(
                f"{self.name} has {list_some([*account.lost])} for weights that penstock reads without it; "
                "take a checkpoint in another format, or one that is not quantised"
            )
        report_left_over(self.name, model, account.left_over)

    def _untied(self, dtype: torch.dtype) -> PreTrainedModel:
        config = copy.deepcopy(self.config)
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        return build_meta_model(config, dtype, trust_remote_code=self.trust_remote_code, bounds=self.bounds)


def _read_config(folder: Path, trust_remote_code: bool) -> tuple[PretrainedConfig, dict[str, Any] | None]:
    """The configuration as if the weights were not quantised, and how they are."""
    path = folder / "config.json"
    try:
        config = read_own_config(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # configurations check themselves, each in its own way
        raise CheckpointError(f"{path} cannot be used: {reason(error)}") from error
    found = None
    for part in (config.get_text_config(decoder=True), config):
        # transformers looks here and there, the whole before the part.
        found = getattr(part, "quantization_config", None) or found
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if found is not None and not isinstance(found, dict):
        if not hasattr(found, "to_dict"):
            raise CheckpointError(f"{path} cannot be used: its quantization_config is {found!r}")
        found = found.to_dict()
    return config, found
