"""``generate`` in its forms."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..contexts import within
from ..fields import pick
from ..outcome.choices import LastChoices
from ..outcome.generated import Generated
from ..side import Side
from .assistants import assistant_of
from .step import Step


def _bias(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores + torch.linspace(0, 1, scores.shape[-1])


def _stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
    return torch.full((len(ids),), ids.shape[1] >= 18)


GREEDY: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[17], [21, 9]], "suppress_tokens": [30, 31]},
    "processor": {"logits_processor": LogitsProcessorList([_bias])},
    "criteria": {"stopping_criteria": StoppingCriteriaList([_stop])},
    "chunks": {"prefill_chunk_size": 4},
    "static cache": {"cache_implementation": "static"},
    "guidance": {"guidance_scale": 1.5},
    "lengths": {"min_new_tokens": 4, "forced_eos_token_id": 2},
}
LOOKED_UP = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {},
}
"""Those that verify several tokens at once."""
OTHERS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "sampling others": {"do_sample": True, "min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 1e-4},
    "beams": {"num_beams": 3},
    "beams, several": {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 0.5},
    "beams, sampling": {"num_beams": 2, "do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
}
FORMS = {**GREEDY, **LOOKED_UP, **OTHERS}


@dataclass(frozen=True)
class Generate(Step):
    """New tokens. ``long``: after a prompt that stored prompts are for."""

    likelihood: ClassVar[int] = 12

    form: str = pick("greedy", "greedy", "greedy", *FORMS)
    rows: int = pick(1, 1, 2)
    tokens: int = pick(9, 2, 33, 70)
    padded: bool = pick(False, True)
    image: bool = pick(True, False)
    new: int = pick(8, 3, 20)
    context: str = pick("plain", "plain", "plain", "inference_mode", "autocast", "default bfloat16")

    def run(self, side: Side) -> Any:
        rows = 1 if self.form in LOOKED_UP else self.rows
        inputs = side.inputs(rows, self.tokens, padded=self.padded and rows > 1, image=self.image)
        return generate(side, inputs, self.form, self.new, self.context)


@dataclass(frozen=True)
class GenerateOften(Step):
    """The same prompt several times, as those who store prompts do."""

    likelihood: ClassVar[int] = 2

    tokens: int = pick(200, 140, 70)
    times: int = pick(3, 2)

    @classmethod
    def weight(cls, settings: Any) -> int:
        return 60 if settings.prefix else cls.likelihood

    def run(self, side: Side) -> Any:
        found = []
        for _ in range(self.times):
            found.append(generate(side, side.inputs(1, self.tokens), "greedy", 6, "plain"))
            if side.ours and side.base.penstock.prefixes is not None:
                side.base.penstock.prefixes.flush()
        return found


def generate(side: Side, inputs: dict[str, Any], form: str, new: int, context: str) -> Generated:
    """What ``generate`` gives in this ``form``."""
    options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0} | FORMS[form]
    if form == "assisted":
        options["assistant_model"] = assistant_of(side)
    if form not in OTHERS:
        options |= {"output_logits": True}
    greedy, rows = form in GREEDY, len(inputs["input_ids"])
    # With guidance, two forwards give a token.
    choices = LastChoices(side.base, rows) if side.rounded and greedy and form != "guidance" else None
    with within(context), choices or nullcontext():
        out = side.model.generate(**inputs, **options, return_dict_in_generate=True)
    logits = tuple(getattr(out, "logits", None) or ())
    return Generated(out.sequences, logits, greedy, choices.close(len(logits)) if choices else None)
