"""What the endpoints of OpenAI's interface share: ids, errors, usage, sampling."""

import secrets
from typing import Any

from ...serving.requests import Sampling
from ..answers.asking import Answers
from ..answers.served import ServedModel
from ..web.bodies import Body
from ..web.endpoints import note_error
from ..web.errors import ApiError
from ..web.replies import event
from .requests import SamplingBody

LEAST = -9999.0
"""The log-probability of what cannot be: JSON has no infinity."""
DONE = "data: [DONE]\n\n"


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def failed_event(error: BaseException) -> str:
    """The event of an error."""
    return event(error_body(note_error(error)))


def new_id(kind: str) -> str:
    """A name that nothing else has."""
    return f"{kind}-{secrets.token_hex(12)}"


def sampling_of(served: ServedModel, body: SamplingBody) -> Sampling:
    """How the tokens of an answer are chosen. Raises ApiError."""
    bias = [(int(token), amount) for token, amount in (body.logit_bias or {}).items()]
    for token, _ in bias:
        if token >= served.vocabulary:
            raise ApiError(400, f"logit_bias: there is no token {token}", param="logit_bias")
    return served.sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple(bias),
    )


def keeps_prompt(body: Body) -> bool:
    """Whether the client asks to have its prompt stored for later ones: a field that changes no answer."""
    return (body.model_extra or {}).get("prompt_cache_retention") == "24h"


def usage_of(answers: Answers) -> dict[str, Any]:
    """Tokens, so far."""
    prompt, told = answers.prompt_tokens, answers.clock.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": told,
        "total_tokens": prompt + told,
        "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
    }
