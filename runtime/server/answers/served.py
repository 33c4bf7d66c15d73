"""A model that is served: its engine, its tokenizer, and what it says about itself."""

import time
from typing import Any

from ...serving.defaults import ends_of, positions_of, room_behind, sampling_of
from ...serving.engine import Engine
from ...serving.requests import Pooling, Sampling
from ...serving.text.chats import ChatTemplate
from ...serving.text.grammars import Grammars
from ...serving.text.replies import find_response_template
from .journal import Journal
from .meters import Meters


class ServedModel:
    """A model under the ``name`` that requests give it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        engine: Engine,
        name: str,
        meters: Meters,
        *,
        pooling: Pooling = "mean",
    ) -> None:
        """``model`` is looked at now; ``engine`` says later which one computes. ``pooling``: how embeddings are
        made."""
        self.meters, self.journal = meters.of(name), Journal()
        self.name, self.tokenizer, self.engine = name, tokenizer, engine
        self.family: str = model.config.model_type
        self._generation = model.generation_config
        self.size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        """Bytes of its weights, as the checkpoint has them."""
        self.created = int(time.time())
        self.pooling: Pooling = pooling
        self.positions = positions_of(model)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.width: int = model.config.get_text_config(decoder=True).hidden_size
        """Dimensions of an embedding."""
        self.ends = ends_of(model)
        self.chat = ChatTemplate(tokenizer)
        self.grammars = Grammars(tokenizer, self.vocabulary, sorted(self.ends))
        self.response_template = find_response_template(model, tokenizer)

    @property
    def model(self) -> Any | None:
        """The model that computes; None while it is not in memory."""
        return self.engine.model

    def room(self, prompt: int) -> int:
        """The most new tokens behind a prompt of ``prompt`` tokens, where a request does not say."""
        return room_behind(prompt, self.positions)

    def sampling(self, **wanted: Any) -> Sampling:
        """The sampling that a request asks for. What is None is as the model says."""
        return sampling_of(self._generation, **wanted)

    def token_text(self, token: int) -> tuple[str, list[int]]:
        """The text of one token, and its bytes."""
        raw = self.grammars.token_bytes(token)
        return raw.decode("utf-8", "replace"), [*raw]
