"""Models on paged KV, for tests: tiny ones, whose pages are small, so that a short context has many of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import penstock
from penstock.runtime.kv.cache.cache import PagedCache
from penstock.runtime.kv.cache.tier import KVTier
from penstock.runtime.kv.pages.pool import PagePool
from penstock.runtime.kv.selectors.budgets import Budgets
from penstock.runtime.kv.selectors.certified import Certificates
from penstock.tiering.errors import PenstockError

TOKENS = 16
"""Of a page."""


@contextmanager
def paged(folder: Path, store: Path, kv: int | str, **options: Any) -> Iterator[PreTrainedModel]:
    """The model in ``folder`` with ``kv`` bytes of memory for KV."""
    with penstock.load(folder, store=store, host_memory="64MiB", kv_host_memory=kv, **options) as model:
        tier_of(model).page_tokens = TOKENS
        yield model


def tier_of(model: PreTrainedModel) -> KVTier:
    return model.penstock.paged.tier


def budgets_of(model: PreTrainedModel) -> Budgets:
    """What the selectors of a model with a fixed budget have done."""
    selection = tier_of(model).selection
    assert selection is not None
    assert isinstance(selection.counters, Budgets)
    return selection.counters


def certificates_of(model: PreTrainedModel) -> Certificates:
    """What the selectors of a model with certified attention have done."""
    selection = tier_of(model).selection
    assert selection is not None
    assert isinstance(selection.counters, Certificates)
    return selection.counters


def has_lost_tokens(cache: PagedCache) -> bool:
    """Whether a forward failed and could not be taken back: the cache refuses the next one."""
    try:
        cache.begin_forward(0)
    except PenstockError:
        return True
    return False


def settle(pool: PagePool) -> None:
    """Have caches that are gone let go of their pages, and rest."""
    gc.collect()
    rest(pool)


def rest(pool: PagePool) -> None:
    """Wait until nothing is read or written any more, and look at the books."""
    with pool._changed:
        assert pool._changed.wait_for(lambda: pool.planner.is_idle, 60)
    pool.check_integrity()
