"""The models of cases: architecture, dtype, and how the checkpoint is written."""

import random
from dataclasses import dataclass
from typing import Any, Self

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from .architectures import ARCHITECTURES, CLASSIFIERS, MULTIMODAL, QUANTISABLE
from .checkpoints.quantised import QUANTISED
from .fields import draw, pick

SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "deep": {"num_hidden_layers": 6},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "window": {"sliding_window": 8, "use_sliding_window": True},
    "one KV head": {"num_key_value_heads": 1},
}
"""Changes of a configuration. What an architecture has no key for is left out."""


@dataclass(frozen=True)
class ModelSpec:
    """A tiny random model. Equal ones have equal weights."""

    architecture: str = pick(*ARCHITECTURES)
    dtype: str = pick("float32", "float32", "float32", "bfloat16", "bfloat16", "float16")
    shape: str = pick("usual", *SHAPES)
    written: str = pick("plain", "plain", "plain", "plain", "plain", "shards", "spare entry", "own code")
    quantised: str = "no"
    head: str = pick(*["causal"] * 14, "classifier")

    @classmethod
    def draw(cls, dice: random.Random) -> Self:
        found = draw(cls, dice)
        quantised = dice.choice([*QUANTISED]) if dice.random() < 0.08 else "no"
        if quantised != "no":
            return cls(dice.choice(QUANTISABLE), "bfloat16", "usual", "plain", quantised)
        if found.head == "classifier":
            return cls(dice.choice(CLASSIFIERS), found.dtype, found.shape, head=found.head)
        if found.architecture in MULTIMODAL and found.written == "own code":
            return cls(found.architecture, found.dtype, found.shape, "plain")
        return found

    @property
    def auto_class(self) -> type[Any]:
        """transformers' class that opens it."""
        return AutoModelForCausalLM if self.head == "causal" else AutoModelForSequenceClassification
