"""Interrupts the model in the first argument again and again, by signals at random moments. Prints how many came."""

import os
import random
import signal
import sys
import threading
import time
from types import FrameType

import torch

import penstock
from tests.support.engines import engine_of
from tests.support.logits import IDS

folder, store, number, rounds, budget = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])


class Interrupted(BaseException):
    """Raised by the handler."""


def raising(number: int, frame: FrameType | None) -> None:
    raise Interrupted


torch.set_num_threads(1)
signal.signal(number, raising)
model = penstock.load(folder, store=store, host_memory=budget)
expected = model(IDS).logits
start = time.monotonic()
for _ in range(3):
    model(IDS)
long = (time.monotonic() - start) / 3
chance, came = random.Random(0), 0
kept: list[object] = []
"""All threads and outputs: Python loses an error that rises while it forgets what a weak set holds."""
for round_ in range(rounds):
    until = chance.uniform(0, long)

    def send(until: float = until) -> None:
        time.sleep(until)
        os.kill(os.getpid(), number)

    kept.append(sender := threading.Thread(target=send))
    try:
        sender.start()
        kept.append(model(IDS))
        sender.join()
        time.sleep(1)  # nobody has been interrupted yet
    except Interrupted:
        came += 1
    sender.join()
    assert not engine_of(model).bridge._planner.residency.held(threading.get_ident()), f"round {round_}"
    engine_of(model).check_integrity()
    assert torch.equal(model(IDS).logits, expected), f"round {round_}"
model.penstock.close()
print(came)
