"""Remembers which tokens a cache has, and under which identity of the model they were computed.

Only such tokens are stored. A forward counts if its keys and values depend on token ids alone, and if the model can be
described when it begins and is the same when it ends.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

from transformers.cache_utils import Cache

from .plain import is_plain_forward


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a model as it is: ``root`` stands before its chains, ``kind`` is the same in every namespace.
    Prompts of ``bound`` tokens or more depend on their length too."""

    root: str
    kind: str
    bound: int | None

    def is_beyond(self, token_ids: Sequence[int]) -> bool:
        """Whether keys and values of the prompt ``token_ids`` may depend on its length."""
        return self.bound is not None and len(token_ids) >= self.bound


@dataclass(slots=True)
class _Origin:
    root: str
    tokens: list[int]


class Origins:
    """Where the leading tokens of caches come from. Thread-safe."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Cache, _Origin] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def begin(self, cache: Cache, root: str, tokens: Sequence[int]) -> None:
        """``cache`` was fresh, and has got ``tokens`` as the model ``root`` computed them."""
        with self._lock:
            self._known[cache] = _Origin(root, [*tokens])

    def cut(self, cache: Cache, length: int) -> None:
        """Nothing is known any more of tokens behind the first ``length`` ones of ``cache``."""
        if (origin := self._known.get(cache)) is not None:
            del origin.tokens[length:]

    def extend(self, cache: Cache, before: int, root: str, tokens: Sequence[int]) -> None:
        """Behind ``before`` tokens ``cache`` has got ``tokens``, which the model ``root`` has computed."""
        with self._lock:
            origin = self._known.get(cache)
            if not before:
                self._known[cache] = _Origin(root, [*tokens])
            elif origin is not None and origin.root == root and len(origin.tokens) == before:
                origin.tokens += tokens

    def count(self, cache: Cache, root: str, token_ids: Sequence[int]) -> int:
        """The number of leading ``token_ids`` that ``cache`` has, as the model ``root`` computed them."""
        with self._lock:
            origin = self._known.get(cache)
            if origin is None or origin.root != root:
                return 0
            pairs = zip(origin.tokens, token_ids, strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class ForwardWatch:
    """Tells ``origins`` what forwards compute that have a ``block`` of tokens at least. ``find_names`` names the model
    as it is; None: it cannot be described."""

    def __init__(
        self, origins: Origins, block: int, find_names: Callable[[], Names | None], flags: Collection[str]
    ) -> None:
        """``flags`` are arguments of a forward that may be False."""
        self._origins, self._block, self._find_names, self._flags = origins, block, find_names, flags

    @contextmanager
    def forward(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Around a forward with the arguments ``kwargs``."""
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if not isinstance(cache, Cache):
            yield
            return
        before, whole_cache = cache.get_seq_length(), getattr(cache, "whole", cache)
        self._origins.cut(whole_cache, before)
        if ids is None or ids.shape[-1] < self._block or not is_plain_forward(kwargs, before, self._flags):
            yield
            return
        names = self._find_names()
        yield
        whole = cache.get_seq_length() == before + ids.shape[1]
        if names is not None and whole and self._find_names() == names:
            self._origins.extend(whole_cache, before, names.root, ids[0].tolist())
