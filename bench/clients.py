"""Many clients of one engine: tokens/s of all together, and the time between the tokens of each.

    python bench/cap.py 1.2GB python bench/clients.py MODEL --clients 1 8 32 --host-memory 700MiB [--rounds 5]

One process. In every round, for each number of clients and each way of batching, all ask at once, for answers of fixed
lengths to prompts of fixed tokens. "Beside a prompt": another client sends a long prompt meanwhile, and the time
between tokens is that of the others while it is computed.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import Spread
from report import Table, publish
from tokens import fixed_tokens

import penstock
from penstock.serving import Engine, Request

PROMPT = 32


async def _answer(engine: Engine, prompt: list[int], tokens: int, times: list[list[float]]) -> None:
    """Note when each token comes."""
    times.append([time.perf_counter() async for _ in engine.generate(Request(prompt, tokens))])


async def _ask(engine: Engine, prompts: list[list[int]], tokens: int, beside: list[int]) -> dict[str, float]:
    times: list[list[float]] = []
    long: list[list[float]] = []
    began = time.perf_counter()
    works = [_answer(engine, prompt, tokens, times) for prompt in prompts]
    if beside:
        works.append(_answer(engine, beside, 1, long))
    await asyncio.gather(*works)
    ended = max(seen[-1] for seen in times)
    gaps = sorted(after - before for seen in times for before, after in itertools.pairwise(seen))
    return {
        "tokens_per_second": sum(map(len, times)) / (ended - began),
        "gap_p50": statistics.median(gaps),
        "gap_p95": gaps[int(0.95 * (len(gaps) - 1))],
        "prompt_seconds": long[0][0] - began if long else 0.0,
    }


def measure(model: Any, clients: int, tokens: int, batch: Any, beside: int) -> dict[str, float]:
    """One round of ``clients``, with a prompt of ``beside`` tokens meanwhile if that is not 0."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    prompts = [fixed_tokens(PROMPT, vocabulary, row=row) for row in range(clients)]
    long = fixed_tokens(beside, vocabulary, row=clients) if beside else []
    with Engine(model, batch=batch, rows=clients + 1) as engine:
        return asyncio.run(_ask(engine, prompts, tokens, long))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batch", nargs="+", default=["exact", "fast"])
    parser.add_argument("--tokens", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--beside", type=int, default=0, help="tokens of a prompt that comes meanwhile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--format", default="as-is", help="[weights] format")
    parser.add_argument("--store", help="keeps the packed model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    ways = [(clients, batch) for clients in options.clients for batch in options.batch]
    found: dict[tuple[int, str], list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or scratch
        settings = {"host_memory": options.host_memory, "weights_format": options.format, "store": store}
        with penstock.load(options.model, **settings) as model:
            measure(model, 2, 2, "exact", 0)  # trials, and the first reads
            for _ in range(options.rounds):
                for way in ways:
                    found[way].append(measure(model, way[0], options.tokens, way[1], options.beside))
    alone = found[ways[0]]
    rows = []
    for (clients, batch), rounds in found.items():
        ratios = [each["tokens_per_second"] / one["tokens_per_second"] for each, one in zip(rounds, alone, strict=True)]
        rows.append(
            (
                f"{clients}, {batch}",
                Spread.of([each["tokens_per_second"] for each in rounds]).text(1),
                Spread.of(ratios).text(1, "x"),
                *(Spread.of([1e3 * each[name] for each in rounds]).text(0) for name in ("gap_p50", "gap_p95")),
                Spread.of([each["prompt_seconds"] for each in rounds]).text(1),
            )
        )
    columns = ("clients, batch", "tokens/s", "against the first row", "ms between tokens", "p95", "s of the prompt")
    results = {f"{clients} {batch}": rounds for (clients, batch), rounds in found.items()}
    publish(
        [Table(f"{options.model.name}, clients of one engine", columns, rows)],
        results,
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
