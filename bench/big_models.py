"""Models that do not fit here, as their makers describe them. Nothing is fetched, and no weight exists.

The hyperparameters are those of each model's config.json on the hub. What a name below leaves out is the default of
transformers' configuration class, where that is the published value: ``GptOssConfig`` is gpt-oss-120b,
``DeepseekV3Config`` is DeepSeek-V3.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.loading.outline import outline_model
from penstock.runtime.packing.arrange.stripes import stripe
from penstock.tiering.planner.arrangement import Outline
from penstock.tiering.store.bundle.manifest import BundleDrive


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights as they are published. Those whose names match the pattern ``weights`` take ``bits`` each, scales
    included. All others are bfloat16."""

    name: str
    weights: str
    bits: float


@dataclass(frozen=True, slots=True)
class BigModel:
    """A published model. ``kind`` and ``sizes`` are as in config.json. ``parameters`` and ``active`` are billions of
    parameters, in all and for one token, as its makers say. An embedding counts as one row for a token. ``packed``
    says how it is published, if not in bfloat16."""

    name: str
    kind: str
    parameters: float
    active: float
    sizes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    packed: Packed | None = None

    def skeleton(self) -> PreTrainedModel:
        """The model in bfloat16, on the meta device."""
        return build_meta_model(AutoConfig.for_model(self.kind, **self.sizes), torch.bfloat16)

    def outline(self, *, packed: bool = False, drives: int = 1) -> Outline:
        """The blocks of the bundle in bfloat16, or, ``packed``, with the bytes of the published numbers. The outline's
        data type is then named after these. They are dealt to ``drives`` equal drives."""
        model = self.skeleton()
        dtype = "bfloat16"
        if packed:
            assert self.packed, f"{self.name} is published in bfloat16"
            _pack(model, self.packed)
            dtype = self.packed.name
        equal = [BundleDrive(str(number), 1) for number in range(drives)]
        return replace(outline_model(model, stripe(describe(model), equal if drives > 1 else ())), dtype=dtype)


def _pack(model: nn.Module, packed: Packed) -> None:
    """Give the weights that are packed as many bytes as they are published with."""
    for name, weight in list(model.named_parameters()):
        if re.search(packed.weights, name):
            path, _, own = name.rpartition(".")
            shape = weight.shape[0], math.ceil(weight[0].numel() * packed.bits / 8)
            stored = torch.empty(shape, dtype=torch.uint8, device="meta")
            setattr(model.get_submodule(path), own, nn.Parameter(stored, requires_grad=False))


MODELS = {
    model.name: model
    for model in (
        # huggingface.co/Qwen/Qwen3-30B-A3B: "30.5B in total and 3.3B activated" (with the embedding, 0.3).
        BigModel(
            "Qwen3-30B-A3B",
            "qwen3_moe",
            parameters=30.5,
            active=3.0,
            sizes={
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_hidden_layers": 48,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "vocab_size": 151936,
            },
        ),
        # huggingface.co/openai/gpt-oss-120b, and ModelConfig of gpt_oss/torch/model.py in openai/gpt-oss. The model
        # card (arXiv 2508.10925) has 116.83 B parameters, 5.13 B active; its experts are in MXFP4, 4.25 bits.
        BigModel(
            "gpt-oss-120b",
            "gpt_oss",
            parameters=116.83,
            active=5.13,
            packed=Packed("mxfp4", r"\.experts\.(gate_up|down)_proj$", bits=4.25),
        ),
        # huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md: 671 B without the module that predicts two tokens,
        # 36.6 B active, "including 0.9B for the output Head"; FP8 with a float32 scale for each 128 x 128 weights, but
        # embedding, output layer, routers and norms.
        BigModel(
            "DeepSeek-V3",
            "deepseek_v3",
            parameters=671.0,
            active=36.6,
            packed=Packed("fp8", r"_proj(_with_mqa)?(\.weight)?$", bits=8 + 32 / 128**2),
        ),
        # huggingface.co/Qwen/Qwen3-32B: dense, "32.8B", "31.2B (Non-Embedding)"; the output layer is used too, 0.8.
        BigModel(
            "Qwen3-32B",
            "qwen3",
            parameters=32.8,
            active=32.0,
            sizes={
                "hidden_size": 5120,
                "intermediate_size": 25600,
                "num_hidden_layers": 64,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 151936,
            },
        ),
    )
}

COMPARED = BigModel(
    "GLM-5.2", "glm_moe_dsa", 744.0, 40.0, packed=Packed("int4", r"_proj(_with_mqa)?(\.weight)?$", bits=4)
)
"""The model with which others have measured offloading. The defaults of ``GlmMoeDsaConfig`` are its sizes."""
