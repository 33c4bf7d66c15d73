"""Stored prefixes of one model: a fresh cache is restored from the longest one that its prompt begins with.

A restored prefix has the bits it was computed with. A prompt that goes on from it gets the same bits as one computed
from its beginning if both compute the same tokens in the same forward calls. So prompts are computed block by block
(runtime/prefixes/prefill.py): each block's keys and values depend on nothing that comes after it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ...kernels.closing import Closing
from ...kernels.process.interrupts import may_be_interrupted
from ...tiering.errors import FlashFull, PenstockError, PrefixError, PromptTooLong
from ...tiering.prefix.breakeven import Speeds, worth_reading
from ...tiering.prefix.chain import Chain, chain_of, root_of
from ...tiering.store.prefixes.found import Found
from ...tiering.store.prefixes.prefix_folder import explain
from ...tiering.store.prefixes.prefixes import PrefixStore
from ..engine.stats import PrefixStats
from ..tiers.placeholders import CPU
from .identity.live_identity import FixedIdentity, LiveIdentity
from .identity.unknown import Undescribed
from .layouts import Layouts
from .origins import ForwardWatch, Names, Origins
from .prefix_source import Contents, has_state, is_supported, restore, take_contents
from .states import goes_on_from_states, is_recurrent

_TRIES = 4
_LOWEST_PRIORITY = 19
_OTHERWISE = "keeps something else than keys and values, which cannot be stored"


class Prefixes(Closing):
    """The stored prefixes of one model, in the namespace ``salt``. Thread-safe; has to be closed.

    A store that fails is one that has nothing: the model goes on, and ``stats`` has the problem.

    ``identity`` describes everything that keys and values depend on (runtime/prefixes/prefix_identity.py). A
    LiveIdentity follows what changes: then a prompt is stored and restored under what the model is at that time, and
    only tokens that ``watch`` has seen computed under it are stored. While something cannot be described, prompts are
    neither stored nor restored, and ``stats`` says why. ``label`` names the model for people. ``config`` is that of the
    model, which computes on ``device``. ``block`` tokens are stored together.
    """

    def __init__(
        self,
        store: PrefixStore,
        identity: Mapping[str, object] | LiveIdentity | FixedIdentity,
        config: PreTrainedConfig,
        *,
        label: str,
        salt: str = "",
        block: int,
        device: torch.device = CPU,
        flags: Collection[str] = (),
    ) -> None:
        """``flags`` are arguments of the model's forward that are False unless they are given."""
        self.flags = flags
        self.store, self.block, self._device, self._salt = store, block, device, salt
        self._identity = FixedIdentity(identity) if isinstance(identity, Mapping) else identity
        self._held = threading.local()
        self.origins = Origins()
        """Where the tokens of caches come from."""
        self.watch = ForwardWatch(self.origins, block, self.find_names, flags).forward
        """A context for each forward of a model that its identity follows, with the keyword arguments of the forward:
        notes which tokens a cache has, and under which identity they were computed."""
        fresh = DynamicCache(config=config)
        self.supported = is_supported(fresh)
        self.with_state = has_state(fresh)
        """Whether a prompt can be offered only after the tokens that ``find_stop`` says."""
        self._recurrent = is_recurrent(fresh)
        self._layouts = Layouts(block)
        found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.positions: int | None = found if isinstance(found, int) else None
        """The most tokens of a prompt that is stored or restored."""
        self._label = label
        self._writer = ThreadPoolExecutor(1, "penstock-prefix-writer", initializer=_lower_priority)
        self._writing: Future[None] | None = None
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("prompts", "hits", "declined", "restored", "bytes_read", "written"), 0)
        self._problem = ""

    def find_names(self) -> Names | None:
        """The names of the model as it is now, for the calling thread; None while something of it cannot be described:
        then nothing may be stored or restored."""
        held: Names | None = getattr(self._held, "names", None)
        return self._look() if held is None else held

    def _look(self) -> Names | None:
        """As ``find_names``, whatever the thread has taken the model for."""
        try:
            described = self._identity.describe()
        except Undescribed as reason:
            self._problem = f"prompts are neither stored nor restored: {reason}"
            return None
        identity = {**described.identity, "block": self.block}  # tokens that are computed at a time
        return Names(root_of(identity, self._salt), root_of(identity), described.bound)

    @contextmanager
    def hold_names(self) -> Iterator[Names | None]:
        """Inside, the calling thread takes the model for what it is at the beginning; ``offer`` looks anew."""
        self._held.names = self.find_names()
        try:
            yield self._held.names
        finally:
            self._held.names = None

    @property
    def root(self) -> str:
        """The hash before every chain of the model as it is now. Raises PrefixError while that is not known."""
        return self._known().root

    @property
    def kind(self) -> str:
        """A name for everything that keys and values depend on now. Raises PrefixError while that is not known."""
        return self._known().kind

    def _known(self) -> Names:
        names = self.find_names()
        if names is None:
            raise PrefixError(self._problem)
        return names

    def can_go_on(self, model: Any, token_ids: Sequence[int]) -> bool:
        """Whether ``model`` computes a prompt ``token_ids`` in several calls, or goes on from a stored part of it, with
        what it computes in one. The first time may take a trial of few tokens. While the model cannot be described, it
        is not known: False."""
        if not self.supported:
            self._problem = f"{self._label} {_OTHERWISE}"
            return False
        if not self.find_boundary(len(token_ids)) or not (self._recurrent or model._is_stateful):
            return True
        names = self.find_names()
        if names is None:
            return False
        able = goes_on_from_states(model, token_ids, kind=names.kind)
        if not able:
            self._problem = (
                "prompts are neither stored nor restored: this model does not go on from its recurrent state where "
                "several tokens come at once"
            )
        return able

    def find_boundary(self, tokens: int) -> int:
        """The last end of a block that leaves at least one of ``tokens`` to be computed."""
        return max(0, tokens - 1) // self.block * self.block

    def count_stored(self, token_ids: Sequence[int]) -> int:
        """The number of ``token_ids`` that a longer prompt beginning with them would find stored. Raises PrefixError
        while the model cannot be described."""
        chain = chain_of(self.root, token_ids, self.block)
        return self.store.longest(chain, with_state=self.with_state) * self.block

    def _is_left_alone(self, names: Names, token_ids: Sequence[int]) -> bool:
        """Whether the prompt ``token_ids`` is neither stored nor restored, because of its length or its tokens."""
        too_long = self.positions is not None and len(token_ids) > self.positions
        odd = bool(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < 1 << 32
        return too_long or odd or names.is_beyond(token_ids)

    def find_stop(self, token_ids: Sequence[int], *, first: bool = False) -> int:
        """The number of leading tokens of a prompt after which it is to be offered: those that come a second time, or
        the ``first``, in full blocks, and are not stored; 0 if there is nothing to store. With windows or recurrent
        states it has to be offered at that point of its prefill, otherwise at any later time."""
        names = self.find_names() if self.supported else None
        if names is None or self._is_left_alone(names, token_ids):
            return 0
        blocks = 0
        with self._note_problems():
            chain = self._chain(names, token_ids)
            seen = len(chain.hashes) if first else self.store.seen(chain)
            blocks = seen if seen > self.store.longest(chain, with_state=self.with_state) else 0
        return blocks * self.block

    def restore(self, token_ids: Sequence[int], cache: DynamicCache) -> int:
        """Fill the fresh ``cache`` with the longest stored prefix of ``token_ids``, if that takes less time than
        computing it; the number of tokens restored, never all. A damaged prefix counts as absent.

        Raises what the pool of a paged cache raises.
        """
        self._count(prompts=1)
        names = self.find_names() if self.supported else None
        if names is None or self._is_left_alone(names, token_ids) or cache.get_seq_length():
            return 0
        try:
            count = self._restore_longest(self._chain(names, token_ids), cache, names.kind)
        except (PrefixError, OSError) as error:
            self._note(error)
            return 0
        self.origins.begin(cache, names.root, token_ids[:count])
        return count

    def _restore_longest(self, chain: Chain, cache: DynamicCache, kind: str) -> int:
        for _ in range(_TRIES):
            found = self.store.open(chain, with_state=self.with_state)
            if found is None:
                return 0
            with found:
                if not self._is_worth(found, chain.root):
                    self._count(declined=1)
                    return 0
                if not self._is_own(found, chain, kind):
                    continue
                if self._fill(found, cache, chain.root):
                    return found.tokens
        return 0

    def _is_own(self, found: Found, chain: Chain, kind: str) -> bool:
        """Whether the tensors of ``found`` are those that the model called ``kind`` stores; otherwise they go."""
        own = self._layouts.is_own(found.layout, kind, self._identity.model, chain.tokens)
        if own is False:
            found.discard()
            self._problem = f"{self.store.folder} had a prompt with tensors that are not this model's; it was removed"
        return own is True

    def offer(self, token_ids: Sequence[int], cache: Cache, *, first: bool = False) -> None:
        """Store the part of the prompt ``token_ids`` that ``cache`` has and that comes a second time, or the ``first``,
        while the model goes on; call it once for a prompt. Nothing is stored while the last prefix is still being
        written, or where the cache cannot give it (see ``find_stop``), and nothing that the model, as it is now, has
        not computed."""
        names = self._look() if self.supported else None
        if names is None or self._is_left_alone(names, token_ids):
            return
        with self._note_problems():
            prompt = self._chain(names, token_ids)
            count = self._count_computed(names, token_ids, cache)
            seen = len(prompt.hashes) if first else self.store.seen(prompt)
            chain = prompt.first(min(seen, count // self.block))
            self._run_later(lambda: self.store.note(prompt))
            if not chain.hashes or (self.with_state and len(chain.tokens) != cache.get_seq_length()):
                return
            if self.store.longest(chain, with_state=self.with_state) == len(chain.hashes):
                return
            if not (self._writing is None or self._writing.done()):
                return
            contents = take_contents(cache, self.block)
            if contents is not None:
                self._layouts.note(contents, names.kind)
                self._writing = self._run_later(lambda: self._write(chain, contents, explicit=False))

    def check_length(self, tokens: int) -> None:
        """Raise PromptTooLong if the model has fewer positions than ``tokens``."""
        if self.positions is not None and tokens > self.positions:
            raise PromptTooLong(
                f"the prompt has {tokens} tokens, but {self._label} has {self.positions} positions; store a shorter one"
            )

    def save(self, token_ids: Sequence[int], cache: Cache) -> int:
        """Store the full blocks of ``token_ids`` that ``cache`` has, and wait for it; the bytes written, 0 if all were
        stored already or there is no room. Raises PrefixError where they cannot be stored, and what PrefixStore.save
        raises; PromptTooLong for more tokens than the model has positions."""
        if not self.supported:
            raise PrefixError(f"{self._label} {_OTHERWISE}")
        self.check_length(len(token_ids))
        names = self._known()
        held = min(len(token_ids), cache.get_seq_length())
        length = min(held, self._count_computed(names, token_ids, cache))
        chain = chain_of(names.root, token_ids[:length], self.block)
        if length // self.block < held // self.block:
            raise PrefixError(
                f"of {held} tokens this model, as it is now, has computed the first {length} in this cache; pass token "
                "ids alone, and the cache, to the model, change nothing meanwhile, and store them then"
            )
        if not chain.hashes:
            raise PrefixError(f"{length} tokens are less than a block of {self.block}; store a longer prompt")
        contents = take_contents(cache, self.block)
        if contents is None:
            raise PrefixError(f"{self._label} {_OTHERWISE}")
        self._layouts.note(contents, names.kind)
        if self.with_state and len(chain.tokens) != cache.get_seq_length():
            raise PrefixError(f"{self._label} can be stored only after a multiple of {self.block} tokens")
        return self._write(chain, contents, explicit=True)

    def _count_computed(self, names: Names, token_ids: Sequence[int], cache: Cache) -> int:
        """The number of leading ``token_ids`` that ``cache`` has, computed by the model called ``names``."""
        length: int = cache.get_seq_length()
        if not self._identity.follows:
            return length
        return min(length, self.origins.count(cache, names.root, token_ids), names.bound or sys.maxsize)

    def note_prefill(self, tokens: int, seconds: float) -> None:
        """Note that computing ``tokens`` of a prompt took ``seconds``: a stored prefix has to be faster."""
        names = self.find_names() if tokens else None
        if names is not None:
            self._note_speeds(names.root, lambda speeds: speeds.after_prompt(tokens, seconds))

    @contextmanager
    def _note_problems(self) -> Iterator[None]:
        """Inside, errors of the store are noted, and the model goes on."""
        try:
            yield
        except (PrefixError, FlashFull, OSError) as error:
            self._note(error)

    def _note(self, error: PenstockError | OSError) -> None:
        """Keep what is wrong, for ``stats``."""
        self._problem = str(explain(self.store.folder, error) if isinstance(error, OSError) else error)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._counts[name] += count

    def stats(self) -> PrefixStats:
        """Counts since this was made."""
        return PrefixStats(**self._counts, problem=self._problem)

    def flush(self) -> None:
        """Wait until all that was offered is stored."""
        self._writer.submit(lambda: None).result()

    @may_be_interrupted
    def close(self) -> None:
        """Wait until all that was offered is stored, and take no more. Idempotent."""
        self._writer.shutdown()

    def _chain(self, names: Names, token_ids: Sequence[int]) -> Chain:
        """The chain of all blocks that could be restored for this prompt."""
        return chain_of(names.root, token_ids[: self.find_boundary(len(token_ids))], self.block)

    def _fill(self, found: Found, cache: DynamicCache, root: str) -> bool:
        began = time.perf_counter()
        if not restore(found, cache, self._device):
            return False
        seconds = time.perf_counter() - began
        self._note_speeds(root, lambda speeds: speeds.after_read(found.bytes, seconds))
        self._count(hits=1, restored=found.tokens, bytes_read=found.bytes)
        return True

    def _is_worth(self, found: Found, root: str) -> bool:
        speeds = self.store.speeds(root)
        worth = worth_reading(speeds, bytes_=found.bytes, tokens=found.tokens, saved=found.explicit)
        if worth != speeds.reading:
            self._note_speeds(root, lambda speeds: replace(speeds, reading=worth))
        return worth

    def _note_speeds(self, root: str, change: Callable[[Speeds], Speeds]) -> None:
        self._run_later(lambda: self.store.measured(root, change))

    def _write(self, chain: Chain, contents: Contents, *, explicit: bool) -> int:
        try:
            written = self.store.save(
                chain,
                contents.fill,
                label=self._label,
                parts=contents.parts,
                state_parts=contents.state_parts,
                explicit=explicit,
            )
        finally:
            contents.release()
        self._count(written=written)
        if written and self.store.speeds(chain.root).read is None:
            self._try_reading(chain)
        return written

    def _try_reading(self, chain: Chain) -> None:
        """Measure how fast the new prefix is read: before that it is not known whether reading pays."""
        found = self.store.open(chain, with_state=self.with_state)
        if found is None:
            return
        with found:
            began = time.perf_counter()
            if found.read_through():
                rate = partial(Speeds.after_read, bytes_=found.bytes, seconds=time.perf_counter() - began)
                self.store.measured(chain.root, rate)

    def _run_later(self, work: Callable[[], object]) -> Future[None]:
        """Do ``work`` on the writer's thread; its errors are noted."""

        def guarded() -> None:
            try:
                work()
            except (PenstockError, OSError) as error:
                self._note(error)

        try:
            return self._writer.submit(guarded)
        except RuntimeError:  # at the end of the interpreter its thread takes no more work
            guarded()
            done: Future[None] = Future()
            done.set_result(None)
            return done


def _lower_priority() -> None:
    """Give the calling thread the lowest priority."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
