"""Says whether several rows are multiplied with the sums of one row alone.

torch sums the products of one row in another order than those of several. A row of a server's batch must have the bits
that it has alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _RowOrder(threading.local):
    alone = False
    """Whether the calling thread multiplies each row as if it were alone."""


ROW_ORDER = _RowOrder()


@contextmanager
def each_row_alone() -> Iterator[None]:
    """In here, products of the calling thread give each row the bits that it has alone."""
    before, ROW_ORDER.alone = ROW_ORDER.alone, True
    try:
        yield
    finally:
        ROW_ORDER.alone = before
