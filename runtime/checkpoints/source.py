"""Where a model's weights come from: a checkpoint folder, a hub id, or a GGUF file; how each is opened for packing."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ...tiering.errors import CheckpointError
from .checkpoint import Checkpoint
from .gguf_file import GgufFile
from .gguf_weights import GgufWeights
from .layout import Layout, layout
from .meta_model import skeleton
from .model_files import copy_model_files
from .quantised_weights import QuantisedWeights
from .weights import Weights


def open_source(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, quiet: bool = True
) -> Checkpoint | GgufFile:
    """``source``, a folder, a GGUF file or a hub id. Raises CheckpointError, as Checkpoint and GgufFile."""
    path = Path(source).expanduser()
    if path.is_file() and GgufFile.is_gguf(path):
        return GgufFile.open(path)
    return Checkpoint.open(source, revision=revision, trust_remote_code=trust_remote_code, quiet=quiet)


@dataclass(frozen=True)
class Content:
    """What a bundle is made of: ``weights`` of ``model``, a skeleton, laid out by ``plan``; ``write_model`` writes the
    small files."""

    model: PreTrainedModel
    weights: Weights
    plan: Layout
    write_model: Callable[[Path], None]


def content_of(
    opened: Checkpoint | GgufFile,
    model: PreTrainedModel,
    order: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    memory: int,
    *,
    aligned: bool = False,
) -> Content:
    """The content of what is ``opened``, for the skeleton ``model``, with experts in ``order``; read in at most
    ``memory`` bytes; ``aligned`` as for pack. Raises what the weights raise."""
    if isinstance(opened, GgufFile):
        plan = layout(model, order=order)
        return Content(
            model, GgufWeights(model, opened, plan), plan, lambda to: opened.write_model_files(to, opened.config)
        )
    weights = QuantisedWeights(model, opened.tensors, layout(model), memory=memory)
    untied = bool(weights.contradictions())
    if untied:  # like transformers, which does not tie weights for which the checkpoint has different values
        weights.close()
        model = _untied(opened, dtype)
        weights = QuantisedWeights(model, opened.tensors, layout(model), memory=memory)
        if differing := weights.contradictions():
            one, other = differing[0]
            raise CheckpointError(
                f"the model shares one weight between {one} and {other}, the checkpoint has two for them"
            )
    plan = layout(model, {} if aligned else weights.addresses(), order)
    return Content(model, weights, plan, lambda to: copy_model_files(opened.folder, to, untied))


def _untied(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    config = copy.deepcopy(checkpoint.config)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return skeleton(config, dtype, trust_remote_code=checkpoint.trust_remote_code)
