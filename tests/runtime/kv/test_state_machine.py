"""Whatever is done with several caches on one pool of pages, on a drive that fails now and then: they hold what
transformers' own would, and the pool's books balance after every step.

Rules have no preconditions: when a failing drive is noticed, and a cache is lost, depends on its thread."""

import contextlib
import errno
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from transformers import LlamaConfig

from penstock.runtime.kv.cache.cache import PagedCache
from penstock.runtime.kv.cache.tier import KVTier
from penstock.runtime.kv.pages.pool import PagePool
from penstock.runtime.kv.pages.spill import Spill
from penstock.tiering.errors import FlashFull, PenstockError, ReadError
from penstock.tiering.kv.pages import BlockTable, Page
from penstock.tiering.units import PAGE
from tests.runtime.kv.test_pool import FAULTS, Faulty
from tests.support.paged import TOKENS, has_lost_tokens, rest, settle

CAPACITY = 32 * PAGE
LAYERS, CACHES, ROWS = 2, 2, 2
"""So many that all open pages have room beside the pages passing through: what is asked for is possible."""
DIM = PAGE // (TOKENS * 4)
LONGEST = 12 * TOKENS
CONFIG = LlamaConfig(num_hidden_layers=LAYERS, num_attention_heads=1, num_key_value_heads=1, head_dim=DIM)


class FaultySpill(Spill):
    """Takes no bytes while it ``fails``."""

    fails = False

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if self.fails:
            raise FlashFull("injected")
        super().write(offset, buffers)


class Model:
    """What a cache should hold: keys and values [LAYERS, 2, B, T, DIM]."""

    def __init__(self, cache: PagedCache, rows: int) -> None:
        self.cache = cache
        self.states = torch.empty(LAYERS, 2, rows, 0, DIM)

    @property
    def tracks(self) -> list[BlockTable]:
        return [track for layer in self.cache.layers for sequence in layer.sequences for track in sequence.tables]

    def agrees(self) -> bool:
        for layer, (keys, values) in zip(self.cache.layers, self.states, strict=True):
            if keys.shape[1] != layer.get_seq_length():
                return False
            if keys.shape[1] and not (torch.equal(layer.keys[:, 0], keys) and torch.equal(layer.values[:, 0], values)):
                return False
        return True


class PoolMachine(RuleBasedStateMachine):
    caches: list[Model]

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.reader = Faulty()
        self.spill = FaultySpill(Path(self.folder.name), self.reader)
        self.pool = PagePool(CAPACITY, self.spill, None)
        self.tier = KVTier(self.pool, 0, layers=LAYERS, page_tokens=TOKENS)
        self.caches, self.number = [], 0
        self.leased: list[tuple[Page, torch.Tensor]] = []

    # --- the drive --------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        return not self.spill.fails and not self.reading

    reading = ""
    """The fault that reads have now, if any."""

    @rule(fault=st.sampled_from([*FAULTS]))
    def reads_fail(self, fault: str) -> None:
        self.reading, self.reader.outcome = fault, FAULTS[fault]

    @rule()
    def writes_fail(self) -> None:
        self.spill.fails = True

    @rule()
    def it_is_well_again(self) -> None:
        self.spill.fails, self.reading = False, ""
        self.reader.outcome = lambda _, problem: problem
        # What failed before is told to whoever asks next, once.
        with self.pool._changed:
            assert self.pool._changed.wait_for(lambda: self.pool.planner.is_idle, 60)
            self.pool.planner.room.trouble = None
            failed = [*self.pool.planner.books.incoming.problems]
        for page in failed:
            with pytest.raises(PenstockError):
                self.pool.fetch([page])

    def attempt(self, do: Any, *arguments: Any) -> bool:
        """Whether it went well; a healthy drive leaves no other choice."""
        healthy = self.healthy
        try:
            do(*arguments)
        except PenstockError:
            assert not healthy
            return False
        return True

    # --- caches -----------------------------------------------------------------------------------------------------

    @rule(rows=st.integers(1, ROWS))
    def another(self, rows: int) -> None:
        if len(self.caches) == CACHES:
            return
        self.caches.append(Model(PagedCache(self.tier, CONFIG), rows))

    @rule(which=st.integers(0, 9), count=st.integers(1, 3 * TOKENS))
    def forward(self, which: int, count: int) -> None:
        if not self.caches:
            return
        model = self.caches[which % len(self.caches)]
        if model.states.shape[3] + count > LONGEST:
            return
        new = torch.arange(self.number, self.number + LAYERS * 2 * model.states.shape[2] * count * DIM) % 65521
        self.number += 7919
        new = new.float().view(LAYERS, 2, -1, count, DIM)
        if self.attempt(self.compute, model.cache, new):
            model.states = torch.cat([model.states, new], 3)

    def compute(self, cache: PagedCache, new: torch.Tensor) -> None:
        """As the model's forward does it."""
        cache.begin_forward(new.shape[3])
        try:
            for layer, (keys, values) in enumerate(new):
                cache.update(keys[:, None], values[:, None], layer)
        except PenstockError:
            cache.undo_forward()
            if has_lost_tokens(cache):  # what it takes to go back is on the drive that fails
                self.forget(cache)
            raise

    @rule(which=st.integers(0, 9), count=st.integers(1, 2 * TOKENS))
    def crop(self, which: int, count: int) -> None:
        if not self.caches:
            return
        model = self.caches[which % len(self.caches)]
        length = model.states.shape[3]
        if not 0 < count < length:
            return
        if self.attempt(model.cache.crop, -count):
            model.states = model.states[:, :, :, : length - count]
        elif has_lost_tokens(model.cache):  # some layers are shorter, others are not
            self.forget(model.cache)

    @rule(which=st.integers(0, 9), rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
    def reorder(self, which: int, rows: list[int]) -> None:
        """As beams do."""
        if not self.caches:
            return
        model = self.caches[which % len(self.caches)]
        there = model.states.shape[2]
        if model.states.shape[3]:
            order = torch.tensor([row % there for row in rows])
            model.cache.reorder_cache(order)
            model.states = model.states[:, :, order]

    @rule(which=st.integers(0, 9))
    def look(self, which: int) -> None:
        if not self.caches:
            return
        model = self.caches[which % len(self.caches)]
        if self.healthy:
            assert model.agrees()
        else:
            self.attempt(lambda: [layer.keys for layer in model.cache.layers])

    @rule(which=st.integers(0, 9))
    def let_go(self, which: int) -> None:
        if not self.caches:
            return
        self.forget(self.caches[which % len(self.caches)].cache)

    def forget(self, cache: PagedCache) -> None:
        cache.reset()
        self.caches = [model for model in self.caches if model.cache is not cache]

    # --- those that compute -----------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 9), track=st.integers(0, 99), page=st.integers(0, 99))
    def lease(self, which: int, track: int, page: int) -> None:
        if not self.caches or self.leased:
            return
        tracks = self.caches[which % len(self.caches)].tracks
        pages = tracks[track % len(tracks)].pages if tracks else []
        sealed = [page for page in pages if page.sealed]
        if sealed:
            found = sealed[page % len(sealed)]

            def take() -> None:
                for held in self.pool.hold([found]) or self.pool.fetch([found]):
                    self.leased.append((held, self.pool.view(held).clone()))

            self.attempt(take)

    @rule()
    def release(self) -> None:
        if not self.leased:
            return
        self.pool.release([page for page, _ in self.leased])
        self.leased = []

    @rule(which=st.integers(0, 9), track=st.integers(0, 99))
    def read_ahead(self, which: int, track: int) -> None:
        if not self.caches:
            return
        if tracks := self.caches[which % len(self.caches)].tracks:
            self.pool.read_ahead([page for page in tracks[track % len(tracks)].pages if page.slot is None])

    # --- the machine ------------------------------------------------------------------------------------------------

    @rule(sixteenths=st.integers(8, 16))
    def resize(self, sixteenths: int) -> None:
        """Memory runs short, and comes back."""
        self.pool.resize(CAPACITY * sixteenths // 16)

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def books_balance(self) -> None:
        self.pool.check_integrity()
        assert self.pool.usage().host_bytes <= CAPACITY

    @invariant()
    def every_page_has_its_tracks(self) -> None:
        tracks = Counter(page for model in self.caches for track in model.tracks for page in track.pages)
        assert {page: page.refs for page in self.pool.planner.books.pages if page.refs} == dict(tracks)

    @invariant()
    def what_is_leased_stays(self) -> None:
        for page, bytes_ in self.leased:
            assert page.slot is not None
            assert torch.equal(self.pool.view(page), bytes_)

    def teardown(self) -> None:
        with contextlib.closing(self.pool), self.folder:
            self.end()

    def end(self) -> None:
        """Everything is right yet, and everything is given back."""
        self.it_is_well_again()
        self.pool.release([page for page, _ in self.leased])
        for model in [*self.caches]:
            assert model.agrees()
            self.forget(model.cache)
        rest(self.pool)
        usage = self.pool.usage()
        assert (usage.host_bytes, usage.flash_bytes) == (0, 0)


class TestPool(PoolMachine.TestCase):
    settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@pytest.mark.soak
class TestPoolForLong(PoolMachine.TestCase):
    settings = settings(max_examples=1500, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("failing", range(LAYERS))
def test_a_crop_that_fails_takes_nothing_away_or_says_so(failing: int, tmp_path: Path) -> None:
    """The page that it would end in has to come back from a drive that cannot read it."""
    reader = Faulty()
    pool = PagePool(CAPACITY, Spill(tmp_path, reader), None)
    model = Model(PagedCache(KVTier(pool, 0, layers=LAYERS, page_tokens=TOKENS), CONFIG), 1)
    model.states = torch.randn(LAYERS, 2, 1, 2 * LONGEST, DIM)
    for layer, (keys, values) in enumerate(model.states):
        model.cache.update(keys[:, None], values[:, None], layer)
    settle(pool)
    absent = next(at for at in range(24) if all(track.pages[at].slot is None for track in model.tracks))
    count = 2 * LONGEST - absent * TOKENS - 5
    reads = iter([None] * 2 * failing)  # what the layers before it need
    reader.outcome = lambda *_: next(reads, OSError(errno.EIO, "injected"))
    with pytest.raises(ReadError):
        model.cache.crop(-count)
    reader.outcome = lambda _, problem: problem
    if failing:
        with pytest.raises(PenstockError, match="lost tokens"):
            model.cache.begin_forward(1)
        return
    assert model.agrees()
    model.cache.crop(-count)
    model.states = model.states[:, :, :, :-count]
    assert model.agrees()
    pool.close()
