"""Everything in memory: penstock and transformers (eager experts) in one process, taking turns every few tokens.

    python bench/in_memory.py MODEL [--tokens 8] [--rounds 24] [--device cuda:0]

Machines are noisy; blocks of a few tokens that alternate see the same noise. Each computes the same fixed random
tokens on a KV cache of its own. A round is one block of each, who is first changes; its ratio is transformers' time
over penstock's. Logits are compared bitwise at every token. Needs memory for the model twice, and no root.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from decode import warm
from engines import Transformers, open_engine
from figures import Spread
from report import Table, publish
from rounds import Runner, size
from tokens import fixed_tokens

PROMPT = 64


def time_block(engine: Transformers, ids: list[int], threads: int) -> tuple[float, list[torch.Tensor]]:
    """Measure the seconds for ``ids`` one by one, and keep the logits of each."""
    torch.set_num_threads(threads)  # a setting of the process, which penstock may have changed for itself
    logits: list[torch.Tensor] = []
    start = time.perf_counter()
    for token in ids:
        engine.feed([token])
        assert engine.logits is not None
        logits.append(engine.logits)
    return time.perf_counter() - start, logits


def measure(
    ours: Transformers, theirs: Transformers, threads: dict[str, int], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure all rounds."""
    ids = fixed_tokens(PROMPT + (options.rounds + 1) * options.tokens, ours.vocabulary)
    engines = {"penstock": ours, "transformers": theirs}
    for engine in engines.values():
        engine.feed(ids[:PROMPT])
    before = ours.handle.stats().flash_bytes_read
    rounds: list[dict[str, float]] = []
    equal = 0
    for number in range(options.rounds + 1):  # the first is a rehearsal
        part = ids[PROMPT + number * options.tokens :][: options.tokens]
        names = list(engines) if number % 2 else list(engines)[::-1]
        done = {name: time_block(engines[name], part, threads[name]) for name in names}
        pairs = zip(done["penstock"][1], done["transformers"][1], strict=True)
        equal += sum(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in pairs)
        rounds.append({name: seconds for name, (seconds, _) in done.items()})
    return {
        "rounds": rounds[1:],
        "equal": equal,
        "compared": (options.rounds + 1) * options.tokens,
        "flash_bytes_read": ours.handle.stats().flash_bytes_read - before,
        "threads": threads,
    }


def main() -> None:
    """Measure penstock and transformers in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of a block")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--host-memory", type=size, help="penstock's budget (default: the model and a little more)")
    parser.add_argument("--device", help="compute there, with everything in its memory")
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, torch.no_grad():
        store = options.store or scratch
        budget = options.host_memory or Runner(options.model, store=store, gguf=None, depth=None).everything()
        common: dict[str, Any] = {"longest": 0, "threads": 0, "scratch": scratch}
        settings: dict[str, Any] = {"host_memory": budget, "store": store}
        if options.device:
            settings |= {"device": options.device, "device_memory": budget}
        threads = {"transformers": torch.get_num_threads()}
        with (
            open_engine("ram", options.model, **common) as theirs,
            open_engine("penstock", options.model, settings=settings, **common) as ours,
        ):
            threads["penstock"] = torch.get_num_threads()
            theirs.model.to(ours.model.device)
            warm(ours)
            found = measure(ours, theirs, threads, options)
    each = {name: [options.tokens / round[name] for round in found["rounds"]] for name in ("penstock", "transformers")}
    ratio = Spread.of([round["transformers"] / round["penstock"] for round in found["rounds"]])
    rows = [
        *((f"{name}, tokens/s", Spread.of(speeds).text(2)) for name, speeds in each.items()),
        ("penstock / transformers", ratio.text(3)),
        ("logits bitwise equal", f"{found['equal']} of {found['compared']} tokens"),
        ("read from flash meanwhile", f"{found['flash_bytes_read']} bytes"),
        ("threads of torch", f"penstock {threads['penstock']}, transformers {threads['transformers']}"),
    ]
    title = f"{options.model.name}, everything in memory, {options.rounds} rounds of {options.tokens} tokens"
    publish(
        [Table(title, ("", "median (range)"), rows)],
        found | {"ratio": ratio.median},
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
