"""Ends the interpreter while a thread generates. Arguments: how, kind of thread, checkpoint, store, budget."""

import atexit
import os
import signal
import sys
import threading
import time

import torch

import penstock
from tests.support.logits import IDS

how, kind, folder, store, budget, at = sys.argv[1:]
torch.set_num_threads(1)
memory = "512MiB" if budget == "all" else int(budget)
more = {"kv_host_memory": "192KiB"} if kind == "paged" else {}
begun, ends = threading.Event(), threading.Event()


def end_idle() -> None:
    """At the end of the interpreter, after what was registered later."""
    ends.set()
    model.penstock.close()
    for thread in threads:
        thread.join(0.5)  # it rests for ever


if kind == "idle":
    atexit.register(end_idle)
model = penstock.load(folder, store=store, host_memory=memory if not more else (192 << 10) + int(budget), **more)
ids = IDS.repeat(1, 3)


def generate() -> None:
    model(ids)
    begun.set()
    if kind == "idle":
        ends.wait()
    if kind == "alive":
        model.generate(ids, max_new_tokens=20, min_new_tokens=20, pad_token_id=0)
        print("generated")
        return
    while True:
        model.generate(ids, max_new_tokens=40, min_new_tokens=40, do_sample=True, pad_token_id=0)


threads = [
    threading.Thread(target=generate, daemon=kind != "alive") for _ in range(2 if kind in ("daemon", "paged") else 1)
]
for thread in threads:
    thread.start()
begun.wait()
time.sleep(int(at) / 1000)
match how:
    case "exit":
        sys.exit(3)
    case "error":
        raise ValueError("on purpose")
    case "signal":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    case "close":
        model.penstock.close()
