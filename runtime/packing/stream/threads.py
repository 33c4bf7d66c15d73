"""One torch thread for work that is all reading and copying."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch's operations of this thread on this thread alone.

    Splitting a copy of a megabyte gains little, and on a busy machine every copy waits for its slowest part. Packing
    took three times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # The number is kept per thread, and once for threads to come: give those theirs back.
    helper = threading.Thread(target=torch.set_num_threads, args=(before,))
    helper.start()
    helper.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
