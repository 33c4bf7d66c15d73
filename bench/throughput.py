"""Several sequences at once against one: as rows of one batch, and as requests from threads of their own.

    python bench/cap.py 1.2GB python bench/throughput.py MODEL --sequences 8 --host-memory 700MiB [--rounds 5]

One process; in every round one sequence alone, N rows in each forward, and N threads with a sequence each, all of
fixed random tokens. The first steps of each part are not timed: the cache follows what is asked for. For the batch, the
different experts that each step needs are seen at the routers; "lacked" are those of them that were not in memory when
their step began: a perfect step reads these and no others. "In vain" are guesses that did not come true.
"""

import argparse
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from figures import Spread, difference
from report import Table, publish, write_results
from resident import ResidentSet
from tokens import fixed_tokens
from unions import watch_experts

import penstock
from penstock.tiering.planner.regions import EXPERTS
from penstock.tiering.units import BlockId, format_size

PROMPT = 16
UNTIMED = 2


class Batch:
    """Rows that go through the model together, each a sequence of its own."""

    def __init__(self, model: Any, rows: range) -> None:
        self._model = model
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._rows, self._at, self._cache = rows, 0, None

    def feed(self, count: int) -> None:
        """Compute on the next ``count`` tokens of every row."""
        ends = self._at, self._at + count
        ids = [fixed_tokens(ends[1], self._vocabulary, row=row)[ends[0] :] for row in self._rows]
        out = self._model(torch.tensor(ids), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._at, self._cache = ends[1], out.past_key_values


def experts_in_memory(model: Any) -> frozenset[BlockId]:
    """The experts that are in memory now, or on their way."""
    residency = model.penstock._engine.bridge._planner.residency
    return frozenset(residency.regions[EXPERTS].blocks)


def measure_batch(model: Any, rows: int, steps: int) -> dict[str, Any]:
    """Measure ``steps`` forwards of ``rows`` sequences."""
    batch = Batch(model, range(rows))
    for count in (PROMPT, *[1] * UNTIMED):
        batch.feed(count)
    before = model.penstock.stats().report()
    with watch_experts(model) as unions:
        start = time.perf_counter()
        for _ in range(steps):
            unions.step(experts_in_memory(model))
            batch.feed(1)
        seconds = time.perf_counter() - start
    counted = difference(before, model.penstock.stats().report())
    place = model.penstock.placement
    expert = place.expert_total_bytes / place.expert_count if place.expert_count else 0.0
    read = counted["flash_bytes_read"] - counted["row_bytes"]
    vain = counted["guess_bytes"] - counted["guess_bytes_used"]
    return {
        "tokens_per_second": rows * steps / seconds,
        "bytes_per_step": read / steps,
        "union_bytes_per_step": unions.count * expert / steps,
        "lacked_bytes_per_step": unions.absent * expert / steps,
        "vain_bytes_per_step": vain / steps,
    }


def measure_threads(model: Any, threads: int, steps: int) -> dict[str, Any]:
    """Measure ``steps`` tokens of each of ``threads`` sequences, every sequence on a thread of its own."""
    gate = threading.Barrier(threads + 1)
    failed: list[BaseException] = []

    def request(row: int) -> None:
        try:
            with torch.no_grad():  # a setting of the thread
                batch = Batch(model, range(row, row + 1))
                for count in (PROMPT, *[1] * UNTIMED):
                    batch.feed(count)
                gate.wait()
                for _ in range(steps):
                    batch.feed(1)
        except BaseException as error:
            failed.append(error)
            gate.abort()

    workers = [threading.Thread(target=request, args=(row,)) for row in range(threads)]
    for worker in workers:
        worker.start()
    try:
        gate.wait()
    except threading.BrokenBarrierError:
        raise SystemExit(f"a request failed: {failed[0]!r}") from failed[0]
    before, start = model.penstock.stats().report(), time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if failed:
        raise SystemExit(f"a request failed: {failed[0]!r}")
    counted = difference(before, model.penstock.stats().report())
    return {
        "tokens_per_second": threads * steps / seconds,
        "bytes_per_step": (counted["flash_bytes_read"] - counted["row_bytes"]) / steps,
    }


def table(title: str, rounds: list[dict[str, Any]]) -> Table:
    """Make the table of the report."""
    rows = []
    for part in rounds[0]:
        runs = [each[part] for each in rounds]
        ratios = [each[part]["tokens_per_second"] / each["one"]["tokens_per_second"] for each in rounds]
        sparse = [run for run in runs if run.get("union_bytes_per_step")]
        experts = ["", "", "", ""]
        if sparse:
            experts = [
                Spread.of([run[f"{name}_bytes_per_step"] / 1e6 for run in sparse]).text(0)
                for name in ("union", "lacked", "vain")
            ]
            over = [run["bytes_per_step"] / run["lacked_bytes_per_step"] for run in sparse]
            experts.append(Spread.of(over).text(3))
        rows.append(
            (
                part,
                Spread.of([run["tokens_per_second"] for run in runs]).text(2),
                "" if part == "one" else Spread.of(ratios).text(2, "x"),
                Spread.of([run["bytes_per_step"] / 1e6 for run in runs]).text(0),
                *experts,
                format_size(max(run["peak_resident_bytes"] for run in runs)),
            )
        )
    columns = (
        "",
        "tokens/s of all",
        "times one",
        "MB read per step",
        "MB of its experts",
        "MB lacked",
        "MB in vain",
        "read / lacked",
        "peak resident",
    )
    return Table(title, columns, rows)


def main() -> None:
    """Measure one sequence, rows and threads in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="timed tokens of every sequence, in every part")
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    watch = ResidentSet()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, torch.no_grad():
        settings = {"host_memory": options.host_memory, "store": options.store or scratch}
        with penstock.load(options.model, **settings) as model:
            parts = {
                "one": partial(measure_batch, model, 1),
                f"{options.sequences} rows": partial(measure_batch, model, options.sequences),
                f"{options.sequences} threads": partial(measure_threads, model, options.sequences),
            }
            for _ in range(options.rounds):
                done = {}
                for name, part in parts.items():
                    watch.take_peak()
                    done[name] = part(options.steps)
                    done[name]["peak_resident_bytes"] = watch.peak
                rounds.append(done)
                speeds = ", ".join(f"{name} {run['tokens_per_second']:.2f}" for name, run in rounds[-1].items())
                print(f"tokens/s: {speeds}", file=sys.stderr, flush=True)
                if options.json:
                    write_results({"rounds": rounds}, options.json)
    title = f"{options.model.name}, host_memory {options.host_memory}, {options.rounds} rounds of {options.steps} steps"
    publish([table(title, rounds)], {"rounds": rounds}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
