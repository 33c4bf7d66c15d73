"""Models on paged KV, for tests: tiny ones, whose pages are small, so that a short context has many of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import penstock
from penstock.runtime.kv.cache.tier import KVTier
from penstock.runtime.kv.pages.pool import PagePool

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


def settle(pool: PagePool) -> None:
    """Have caches that are gone let go of their pages, and rest."""
    gc.collect()
    rest(pool)


def rest(pool: PagePool) -> None:
    """Wait until nothing is read or written any more, and look at the books."""
    with pool._changed:
        assert pool._changed.wait_for(lambda: pool.planner.is_idle, 60)
    pool.check_integrity()
