"""Thousands of generated tokens: does the speed last, and does the resident set stay?

    python bench/cap.py 2GiB python bench/endurance.py MODEL --host-memory 1400MiB [--tokens 5000] [--request 200]

``generate`` samples (fixed seed) in requests of --request tokens, each from a prompt of its own, until --tokens are
there. One request of 5000 (``--request 5000``) is possible too; then attention over a growing cache, which is
transformers' own work and memory, slows every token a little and the resident set grows by the cache: "KV cache" says
by how much. Prompts are not timed. Every window of --window tokens has its speed and its resident set.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from figures import speed_by_windows
from report import Table, publish, write_results
from resident import ResidentSet
from tokens import fixed_tokens
from transformers.generation.streamers import BaseStreamer

import penstock
from penstock.tiering.units import format_size

PROMPT = 16


class Clock(BaseStreamer):
    """The seconds between the tokens of a request, without the prompt's token. It watches memory by windows."""

    def __init__(self, window: int) -> None:
        self.seconds: list[float] = []
        self.resident: list[int] = []
        self.peaks: list[int] = []
        self._watch = ResidentSet()
        self._window = window
        self._last: float | None = None
        self._puts = 0

    def put(self, value: torch.Tensor) -> None:
        """Note the time of a token."""
        now = time.perf_counter()
        self._puts += 1  # the first is the prompt itself, the second the token that its forward gives
        if self._puts > 2 and self._last is not None:
            self.seconds.append(now - self._last)
            if len(self.seconds) % self._window == 0:
                self.resident.append(self._watch.now)
                self.peaks.append(max(self._watch.take_peak(), self.resident[-1]))
        self._last = time.perf_counter()

    def end(self) -> None:
        """Forget the request that has ended."""
        self._last, self._puts = None, 0


def cache_bytes(model: Any, tokens: int) -> int:
    """Compute the bytes of transformers' KV cache for ``tokens`` tokens."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * tokens * model.dtype.itemsize)


def run(model: Any, clock: Clock, options: argparse.Namespace) -> None:
    """Generate in requests until there are enough tokens."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    torch.manual_seed(0)
    request = 0
    while len(clock.seconds) < options.tokens:
        count = min(options.request, options.tokens - len(clock.seconds))
        prompt = torch.tensor([fixed_tokens(PROMPT, vocabulary, row=request)])
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            min_new_tokens=count + 1,
            max_new_tokens=count + 1,  # one comes with the prompt
            pad_token_id=0,
            streamer=clock,
        )
        request += 1
        speed = count / sum(clock.seconds[-count:])
        print(f"{len(clock.seconds)} of {options.tokens} tokens, {speed:.2f} tokens/s", file=sys.stderr, flush=True)
        if options.json:
            write_results({"seconds": clock.seconds, "resident": clock.resident, "peaks": clock.peaks}, options.json)


def main() -> None:
    """Generate, and report speed and memory by windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--request", type=int, default=200, help="tokens of one call of generate")
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--store", help="folder for the bundle (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.tokens < 2 * options.window:
        parser.error("--tokens must be two windows at least")
    transformers.utils.logging.disable_progress_bar()
    clock = Clock(options.window)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as scratch:
        settings = {"host_memory": options.host_memory, "store": options.store or scratch}
        with penstock.load(options.model, **settings) as model:
            run(model, clock, options)
            stats = model.penstock.stats()
            growth = cache_bytes(model, options.request)
    speeds = speed_by_windows(clock.seconds, options.window)
    rows = [
        (
            f"{number * options.window + 1} to {(number + 1) * options.window}",
            f"{speed:.2f}",
            format_size(now),
            format_size(peak),
        )
        for number, (speed, now, peak) in enumerate(zip(speeds, clock.resident, clock.peaks, strict=True))
    ]
    summary = [
        ("first window, tokens/s", f"{speeds[0]:.2f}"),
        ("last window, tokens/s", f"{speeds[-1]:.2f}"),
        ("last / first", f"{speeds[-1] / speeds[0]:.3f}"),
        ("slowest window / first", f"{min(speeds) / speeds[0]:.3f}"),
        ("resident set, first window", format_size(clock.resident[0])),
        ("resident set, last window", format_size(clock.resident[-1])),
        ("highest peak", format_size(max(clock.peaks))),
        ("KV cache of a whole request", format_size(growth)),
        ("host memory in use", f"{format_size(stats.host_bytes)} of {format_size(stats.host_budget)}"),
    ]
    title = f"{options.model.name}, host_memory {options.host_memory}, requests of {options.request} tokens"
    publish(
        [
            Table(title, ("tokens", "tokens/s", "resident set", "its peak"), rows),
            Table("First and last", ("", ""), summary),
        ],
        {"seconds": clock.seconds, "speeds": speeds, "resident": clock.resident, "peaks": clock.peaks},
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
