"""CPU time of a token in memory without its products, on one thread, and its calls of torch's operations.

    python bench/token_rest.py MODEL [--host-memory 3GiB] [--store FOLDER] [--set weights_format=int8] [--context 256]

The compiled products are replaced by functions that fill their results with zeros, so that all else of a token is what
remains. Blocks of tokens with products, without, and of transformers take turns; of each the least time counts, since
other programs only add to it.
"""

import argparse
import contextlib
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from engines import Transformers, open_engine
from report import Table, publish
from tokens import fixed_tokens
from torch.profiler import ProfilerActivity, profile

from penstock.kernels.native import KERNELS

BLOCK = 8


@contextlib.contextmanager
def without_products() -> Iterator[None]:
    """In here, compiled products compute nothing."""
    names = [name for name in vars(KERNELS) if "products" in name]
    kept = {name: getattr(KERNELS, name) for name in names}

    def nothing(count: int, matrices: Any, inputs: Any, outs: Any, rows: int, n: int, *_: object) -> int:
        first = outs[0] if not isinstance(outs, int) else ctypes.c_uint64.from_address(outs).value
        ctypes.memset(first, 0, 2 * count * rows * n)
        return 1  # no matrix is damaged

    try:
        for name in names:
            setattr(KERNELS, name, nothing)
        yield
    finally:
        for name, kernel in kept.items():
            setattr(KERNELS, name, kernel)


def time_tokens(engine: Transformers, ids: Iterator[int]) -> float:
    """Milliseconds of CPU time for a token."""
    start = time.process_time()
    for _ in range(BLOCK):
        engine.feed([next(ids)])
    return 1e3 * (time.process_time() - start) / BLOCK


def count_calls(engine: Transformers, ids: Iterator[int]) -> float:
    """Calls of torch's operations for a token."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(BLOCK):
            engine.feed([next(ids)])
    return float(sum(event.count for event in profiled.key_averages() if event.key.startswith("aten::"))) / BLOCK


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--host-memory", default="3GiB")
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of penstock")
    parser.add_argument("--context", type=int, default=256, help="tokens before the first that is timed")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch, torch.no_grad():
        settings = {"host_memory": options.host_memory, "store": options.store or scratch}
        settings |= dict(setting.split("=", 1) for setting in options.set)
        common: dict[str, Any] = {"longest": 0, "threads": 0, "scratch": scratch}
        with (
            open_engine("ram", options.model, **common) as theirs,
            open_engine("penstock", options.model, settings=settings, **common) as ours,
        ):
            torch.set_num_threads(1)
            needed = options.context + (options.rounds + 3) * 3 * BLOCK
            given = fixed_tokens(needed, ours.vocabulary)
            for engine in (ours, theirs):
                engine.feed(given[: options.context])
            ids = iter(given[options.context :])
            ways: dict[str, tuple[Callable[[], Any], Transformers]] = {
                "penstock": (contextlib.nullcontext, ours),
                "penstock, without its products": (without_products, ours),
                "transformers": (contextlib.nullcontext, theirs),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds + 1):  # the first is a rehearsal
                for name, (around, engine) in ways.items():
                    with around():
                        times[name].append(time_tokens(engine, ids))
            calls = {"penstock": count_calls(ours, ids), "transformers": count_calls(theirs, ids)}
            layers = ours.model.config.get_text_config().num_hidden_layers
    least = {name: min(each[1:]) for name, each in times.items()}
    rows = [*((f"{name}, ms a token", f"{each:.2f}") for name, each in least.items())]
    rest = least["penstock, without its products"] / layers
    rows.append(("besides products, ms a layer", f"{rest:.3f}"))
    rows += [(f"{name}, calls of torch a layer", f"{each / layers:.0f}") for name, each in calls.items()]
    publish(
        [Table(f"{options.model.name}, one thread, {layers} layers", ("", "least"), rows)],
        {"times": times, "calls": calls, "layers": layers},
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
