"""Four processes that continue prompts from one prefix store, while a fifth is killed at random moments; as a module.

prefix_child STORE    prints the tokens they restored, and how often the fifth was killed
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from penstock.runtime.prefixes.prefill import prefill
from penstock.tiering.units import MiB
from tests.support.prefix_store_child import forked
from tests.support.prefixed_models import BLOCK, continued, fresh, model_of, prefixes_of, tokens

PROMPTS = [[*tokens(70, seed % 2), *tokens(20 + 7 * seed, 100 + seed)] for seed in range(6)]


def work(model: object, cold: list[list[torch.Tensor]], folder: Path, number: int, pipe: int) -> None:
    chance, restored = random.Random(number), 0
    with prefixes_of(model, folder, quota=1 * MiB) as prefixes:
        for _ in range(12):
            which = chance.randrange(len(PROMPTS))
            prompt, cache = PROMPTS[which], fresh(model)
            restored += prefixes.restore(prompt, cache)
            prefixes.note_prefill(1, 10.0)
            warm = continued(model, prompt, cache, steps=2)
            assert all(map(torch.equal, warm, cold[which])), "other bits than the cold run"
            prefixes.offer(prompt, cache)
            prefixes.flush()
    os.write(pipe, f"{restored}\n".encode())


def write_on(model: object, folder: Path) -> None:
    with prefixes_of(model, folder, quota=1 * MiB) as prefixes:
        for number in range(10**6):
            prompt, cache = PROMPTS[number % len(PROMPTS)], fresh(model)
            prefill(model, prompt, cache, block=BLOCK)
            prefixes.save(prompt, cache)
            if number % len(PROMPTS) == 5:
                prefixes.store.prune(everything=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model, chance, killed = model_of("llama"), random.Random(0), 0
    cold = [continued(model, prompt, fresh(model), steps=2) for prompt in PROMPTS]
    back, out = os.pipe()
    children = {forked(work, model, cold, folder, number, out) for number in range(4)}
    os.close(out)
    while children:
        victim = forked(write_on, model, folder)
        time.sleep(chance.uniform(0.05, 0.3))  # the moment is what is random
        os.kill(victim, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(victim, 0)[1])
        while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            children.remove(ended[0])
            if ended[1]:
                sys.exit("a process failed")
    with open(back) as lines:
        print(sum(map(int, lines)), killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
