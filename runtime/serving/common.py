"""The beginnings that requests have in common, and their caches: computed once, and kept as long as somebody waits."""

import threading
from collections.abc import Sequence

from transformers.cache_utils import DynamicCache

from ...tiering.prefix.chain import chain_of
from ...tiering.serving.sharing import Sharing
from ..loading.handle import Handle
from ..prefixes.beginnings import Beginning, Made, can_copy, let_go

_ROOT = "00" * 32


class Common:
    """The beginnings of the requests of one engine. ``offer`` and ``end`` may be called from any thread.

    They are blocks of stored prompts. A model that keeps none computes a prompt in one call, whose beginning would have
    other bits by itself: then there are none.
    """

    def __init__(self, handle: Handle) -> None:
        prefixes = handle.prefixes
        able = prefixes is not None and prefixes.supported and can_copy(handle.cache())
        self._prefixes = prefixes if able else None
        self._sharing, self._caches = Sharing(), dict[str, Made]()
        self._lock = threading.Lock()

    def offer(self, number: int, prompt: Sequence[int]) -> None:
        """A request waits."""
        if self._prefixes is None:
            return
        beginnings = prompt[: self._prefixes.find_boundary(len(prompt))]
        hashes = chain_of(_ROOT, beginnings, self._prefixes.block).hashes
        with self._lock:
            self._sharing.offer(number, hashes)

    def waits(self, number: int) -> bool:
        """Whether another request computes the beginning of this one right now. If not, ``begin`` comes next."""
        if self._prefixes is None:
            return False
        with self._lock:
            return self._sharing.waits(number)

    def begin(self, number: int) -> Beginning | None:
        """How the request begins; None: as if it were alone."""
        if self._prefixes is None:
            return None
        block = self._prefixes.block
        with self._lock:
            role = self._sharing.begin(number)
            has = None if role.has is None else self._caches[role.has]
            self._drop(but=role.has)

        def give(tokens: int, cache: DynamicCache, root: str) -> None:
            with self._lock:
                hash_ = self._sharing.made(number, tokens // block)
                if hash_ is None:
                    let_go(cache)
                else:
                    self._caches[hash_] = Made(cache, root)

        stops = tuple(blocks * block for blocks in role.makes)
        return Beginning(has, stops, give, lambda: self.end(number))

    def end(self, number: int) -> None:
        """The request has ended, or computes nothing for others any more. Idempotent."""
        if self._prefixes is not None:
            with self._lock:
                self._sharing.end(number)
                self._drop()

    def _drop(self, but: str | None = None) -> None:
        """Let go of what nobody waits for, ``but`` what somebody begins with now."""
        for hash_ in self._sharing.drop():
            made = self._caches.pop(hash_)
            if hash_ != but:
                let_go(made.cache)
