"""A model that is served: its engine, its tokenizer, and what it says about itself."""

import time
from typing import Any

from ...serving.defaults import ends_of, positions_of, room_behind, sampling_of
from ...serving.engine import Engine
from ...serving.requests import Sampling
from ...serving.text.chats import ChatTemplate
from ...serving.text.grammars import Grammars
from ...serving.text.replies import find_response_template
from .meters import Meters


class ServedModel:
    """A model under the ``name`` that requests give it."""

    def __init__(self, model: Any, tokenizer: Any, engine: Engine, name: str, meters: Meters) -> None:
        self.meters = meters.of(name)
        self.name, self.model, self.tokenizer, self.engine = name, model, tokenizer, engine
        self.size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        """Bytes of its weights, as the checkpoint has them."""
        self.created = int(time.time())
        self.positions = positions_of(model)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.ends = ends_of(model)
        self.chat = ChatTemplate(tokenizer)
        self.grammars = Grammars(tokenizer, self.vocabulary, sorted(self.ends))
        self.response_template = find_response_template(model, tokenizer)

    def room(self, prompt: int) -> int:
        """The most new tokens behind a prompt of ``prompt`` tokens, where a request does not say."""
        return room_behind(prompt, self.positions)

    def sampling(self, **wanted: Any) -> Sampling:
        """The sampling that a request asks for. What is None is as the model says."""
        return sampling_of(self.model, **wanted)

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """The text of one token, and its bytes."""
        raw = self.grammars.token_bytes(token)
        return raw.decode("utf-8", "replace"), [*raw]
