"""Answers to many requests at a time from one model: each weight that is read serves all of them.

    from penstock.serving import Engine, Request

    with Engine(model) as engine:
        async for token in engine.generate(Request(prompt=ids, max_tokens=100)):
            print(token.id)

``model`` is one that ``penstock.load`` or ``penstock.wrap`` gave. ``engine.answer(request)`` is the same without
asyncio. ``await engine.embed(Passage(prompt=ids))`` is the embedding of a text.
"""

from .runtime.serving.engine import Batch, Engine
from .runtime.serving.requests import Finish, Passage, Pooling, Request, Sampling, Token
from .tiering.errors import QueueFull, RequestError, TimedOut
from .tiering.serving.admission import Priority

__all__ = [
    "Batch",
    "Engine",
    "Finish",
    "Passage",
    "Pooling",
    "Priority",
    "QueueFull",
    "Request",
    "RequestError",
    "Sampling",
    "TimedOut",
    "Token",
]
