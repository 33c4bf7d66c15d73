"""Notes whether attention was computed page by page, which Penstock promises other bits for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from penstock.runtime.kv.attention import attention
from penstock.tiering.units import MiB

MOST, SHARE = 8 * MiB, 4
"""As docs/explanation/kv.md says: what takes less than this, and less than this part of [kv] host, has eager's bits."""


@dataclass
class ByPages:
    """``seen``: whether so much was attended to that it went page by page. Keys and values of later layers and tokens
    then follow from sums in another order."""

    seen: bool = False


@contextmanager
def noting_pages(kv_bytes: int) -> Iterator[ByPages]:
    """Inside, notes what attention does with ``kv_bytes`` for keys and values. What is small enough for eager's bits
    does not count: it must have them."""
    noted = ByPages()
    original = attention._attend_to_pages

    def note(query: Any, key: Any, *others: Any) -> Any:
        batch, heads, rows, dim = query.shape
        scores = batch * heads * rows * key.shape[2] * (4 + 3 * query.element_size())
        copies = 2 * batch * key.shape[2] * dim * query.element_size()
        if scores + copies * (heads + key.shape[1]) >= min(MOST, kv_bytes // SHARE):
            noted.seen = True
        return original(query, key, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_attend_to_pages", note)
        yield noted
