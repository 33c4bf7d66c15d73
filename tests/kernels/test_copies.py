"""Copies to a device: what waits."""

import threading
from collections.abc import Sequence

import torch

from penstock.kernels.devices.copies import Copies, Wait


def test_bytes_are_queued_until_their_copy_has_ended_well_or_not() -> None:
    gates = [threading.Event(), threading.Event()]
    ends = [threading.Event(), threading.Event()]
    waiting = iter(gates)

    def begin(source: torch.Tensor, target: torch.Tensor, after: Sequence[None]) -> Wait:
        gate = next(waiting)

        def wait() -> None:
            assert gate.wait(20)
            if gate is gates[1]:
                raise OSError("the bus")

        return wait

    copies, some = Copies(begin), torch.zeros(10, dtype=torch.uint8)
    for end in ends:
        copies.up(some, some, (), lambda _, end=end: end.set())
    assert copies.queued == 20
    gates[0].set()
    assert ends[0].wait(20)
    assert copies.queued == 10
    gates[1].set()
    assert ends[1].wait(20)
    assert copies.queued == 0
    copies.close()
