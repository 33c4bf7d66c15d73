"""Calls of the model itself."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..contexts import USUAL, within
from ..fields import pick
from ..outcome.choices import PerToken, noted_choices
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Forward(Step):
    """Logits of a prompt."""

    likelihood: ClassVar[int] = 14

    rows: int = pick(1, 1, 2, 3)
    tokens: int = pick(12, 1, 5, 40)
    padded: bool = pick(False, False, True)
    image: bool = pick(True, False)
    context: str = pick(*USUAL)
    keep: int = pick(0, 0, 1)
    seen: str = pick("logits", "logits", "hidden", "attentions", "loss", "tuple", "no cache")

    def run(self, side: Side) -> Any:
        inputs = side.inputs(self.rows, self.tokens, padded=self.padded, image=self.image)
        if self.keep:
            inputs["logits_to_keep"] = self.keep
        with within(self.context), noted_choices(self.rows, self.tokens, wanted=side.rounded) as close:
            return PerToken(_SEEN[self.seen](side.model, inputs), close)


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs).logits


def _hidden(model: Any, inputs: dict[str, Any]) -> Any:
    return list(model(**inputs, output_hidden_states=True).hidden_states or ())


def _attentions(model: Any, inputs: dict[str, Any]) -> Any:
    return [each for each in model(**inputs, output_attentions=True).attentions or () if each is not None]


def _loss(model: Any, inputs: dict[str, Any]) -> Any:
    inputs.pop("logits_to_keep", None)
    out = model(**inputs, labels=inputs["input_ids"])
    return [out.loss, out.logits]


def _tuple(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs, return_dict=False)[0]


def _no_cache(model: Any, inputs: dict[str, Any]) -> Any:
    out = model(**inputs, use_cache=False)
    return [out.logits, getattr(out, "past_key_values", None) is None]


_SEEN = {
    "logits": _logits,
    "hidden": _hidden,
    "attentions": _attentions,
    "loss": _loss,
    "tuple": _tuple,
    "no cache": _no_cache,
}


@dataclass(frozen=True)
class Embedded(Step):
    """Logits of embeddings that the user looked up, and changed."""

    context: str = pick("no_grad", "plain", "autocast, no_grad")

    def run(self, side: Side) -> Any:
        with within(self.context):
            found = side.model.get_input_embeddings()(side.ids(1, 9))
            return side.model(inputs_embeds=found * 1.5).logits
