"""One answer: transformers' own ``generate``, whose tokens are told as they are chosen."""

from collections.abc import Callable
from typing import Any

import torch

from ..modules.deferring import Deferral, deferral
from ..prefixes.beginnings import Beginning, beginning
from ..prefixes.prefill import at_once, restored
from .defaults import ends_of
from .requests import Request, Token
from .sampling import Choice, processors_of


def compute_answer(
    model: Any,
    request: Request,
    tell: Callable[[Token], None],
    cache: Any = None,
    begins: Beginning | None = None,
) -> None:
    """Compute the answer of ``model`` to ``request``. ``tell`` is called with each token. ``cache`` is empty, and takes
    keys and values; None: the model makes one. ``begins``: what the prompt has in common with others."""
    ids = torch.tensor([list(request.prompt)], device=model.device)
    choice = Choice(request)
    end = _End(model, request)
    restored.set(0)
    beginning.set(begins)
    forces = None if request.top_logprobs is not None or model._is_stateful else request.forces
    deferral.set(None if forces is None else Deferral(forces, model.get_input_embeddings().num_embeddings))
    at_once.set(request.keep)

    def note(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """A stopping criterion, which is called behind each new token."""
        token = int(input_ids[0, -1])
        finish = end.reason(token, input_ids.shape[1] - len(request.prompt))
        tell(Token(token, choice.logprob, choice.top, finish, restored.get()))
        return torch.tensor([finish is not None], device=input_ids.device)

    try:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=processors_of(request, model.device, choice),
            stopping_criteria=[note],
            max_new_tokens=request.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            num_beams=1,
            num_return_sequences=1,
            pad_token_id=end.pad,
            use_cache=True,
            **({} if cache is None else {"past_key_values": cache}),
        )
    finally:
        deferral.set(None)


class _End:
    """Says whether a token is the last one."""

    def __init__(self, model: Any, request: Request) -> None:
        config = model.generation_config
        self._ends = ends_of(model)
        self._most, self._until = request.max_tokens, request.until
        self.pad = config.pad_token_id if config.pad_token_id is not None else min(self._ends, default=0)

    def reason(self, token: int, count: int) -> Any:
        """Return why the answer ends behind ``token``, the ``count``-th, or None."""
        if token in self._ends or (self._until is not None and self._until(token)):
            return "stop"
        return "length" if count >= self._most else None
