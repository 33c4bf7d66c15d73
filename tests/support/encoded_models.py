"""What a model with encoded matrices must compute: transformers' own, with the numbers that the formats mean."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.packing.arrange.formats import Rules, choose_formats

IDS = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(1))


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of a prompt of two rows, and of a token after it."""
    with torch.no_grad():
        out = model(IDS, use_cache=True)
        one = model(IDS[:, :1], past_key_values=out.past_key_values, use_cache=True)
    return torch.cat([out.logits, one.logits], dim=1).float()


def decoded(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """``model``, transformers' own, with the numbers that its matrices have in format ``name``."""
    plan = describe(model)
    weights = dict(model.named_parameters())
    for tensor, choice in choose_formats(model, plan, Rules(name)).items():
        whole = weights[tensor].data
        for matrix in whole if whole.dim() == 3 else [whole]:
            rows = matrix.t().contiguous() if choice.transposed else matrix
            n, k = rows.shape
            out = torch.empty_like(rows)
            format_ = FORMATS[choice.format]
            format_.decode(format_.encode([rows], n, k), n, k, slice(0, n), out)
            matrix.copy_(out.t() if choice.transposed else out)
    return model


def transformers_own(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()
