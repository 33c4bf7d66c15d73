"""A server under a load like a real one: is any request lost, does memory stay flat, does the queue stay bounded?

    python bench/load.py MODEL --host-memory 300MiB [--minutes 30] [--rate 0.5] [--shape 0.5] [--zipf 1.1]

``penstock serve`` runs in a process of its own. Requests come with Gamma intervals and Zipf lengths (arrivals.py), and
some clients go away. Each must end in one way: with as many tokens as it asked for, or the model's end; with 429 and
``Retry-After``, as the queue was full; or because its client left. At the end nothing may be left in the server.
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from arrivals import Arrival, arrivals
from batch_file import prepare
from report import Table, publish
from tokens import fixed_tokens

WINDOWS = 10
"""Of the run, each with its own figures."""


class Load:
    """The requests to the server at ``port``, and what became of them."""

    def __init__(self, port: int, vocabulary: int) -> None:
        self.port, self._vocabulary = port, vocabulary
        self.ends: Counter[str] = Counter()
        self.waiting: list[tuple[float, int, int]] = []  # time, requests that wait, resident bytes

    async def run(self, requests: list[Arrival], server: psutil.Process) -> None:
        """Send ``requests`` when they are due, and wait for all of them."""
        watch = asyncio.create_task(self._watch(server))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, each in enumerate(requests):
                await asyncio.sleep(max(0.0, began + each.at - time.monotonic()))
                group.create_task(self._ask(number, each))
        watch.cancel()

    async def _ask(self, number: int, arrival: Arrival) -> None:
        prompt = fixed_tokens(arrival.prompt, self._vocabulary, row=number)
        body = {"prompt": prompt, "max_tokens": arrival.answer, "temperature": 0}
        try:
            async with asyncio.timeout(arrival.leaves):
                status, headers, answer = await self.call("POST", "/v1/completions", body)
        except TimeoutError:
            self.ends["left"] += 1
            return
        if status == 429:
            self.ends["refused" if "retry-after" in headers else "refused without Retry-After"] += 1
            return
        tokens = answer.get("usage", {}).get("completion_tokens") if status == 200 else None
        whole = tokens == arrival.answer or (tokens and answer["choices"][0]["finish_reason"] == "stop")
        self.ends["answered" if whole else f"lost: {status} {str(answer)[:200]}"] += 1

    async def _watch(self, server: psutil.Process) -> None:
        while True:
            with suppress(OSError):
                counts = await self.counts()
                self.waiting.append((time.monotonic(), counts["waiting"], server.memory_info().rss))
            await asyncio.sleep(1)

    async def counts(self) -> dict[str, int]:
        """Requests in the server, by state."""
        _, _, found = await self.call("GET", "/props")
        counts: dict[str, int] = found["models"][0]["requests"]
        return counts

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, str, Any]:
        """Send a request. Returns the status, the headers in lower case, and the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            content = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            found, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        headers = found.decode().lower()
        if "transfer-encoding: chunked" in headers:
            rest = b"".join(re.split(rb"\r?\n?[0-9a-f]+\r\n", rest))
        return int(headers.split()[1]), headers, json.loads(rest)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--shape", type=float, default=0.5, help="of the Gamma distribution of intervals")
    parser.add_argument("--zipf", type=float, default=1.1, help="exponent of the distribution of lengths")
    parser.add_argument("--most", type=int, default=256, help="tokens of the longest prompts and answers")
    parser.add_argument("--leaving", type=float, default=0.1, help="share of clients that go away")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--store", help="keeps the packed model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    requests = [
        *arrivals(
            rate=options.rate,
            shape=options.shape,
            zipf=options.zipf,
            most=options.most,
            seconds=60 * options.minutes,
            leaving=options.leaving,
            seed=1,
        )
    ]
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = prepare(options.model, Path(scratch) / "model", 4 * options.most)
        command = [sys.executable, "-c", "from penstock.runtime.cli.main import run; run()", "serve"]
        command += [f"{scratch}/model", "--port", "0", "--rows", str(options.rows), "--queue", str(options.queue)]
        command += ["--host-memory", options.host_memory, "--store", options.store or f"{scratch}/store", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = "".join(iter(lambda: process.stdout.readline() if process.stdout else "", "}\n")) + "}"
            load = Load(int(json.loads(said)["url"].rpartition(":")[2]), vocabulary)
            try:
                asyncio.run(load.run(requests, psutil.Process(process.pid)))
                left = asyncio.run(load.counts())
            finally:
                process.send_signal(signal.SIGTERM)
    step = -(-len(load.waiting) // WINDOWS)
    windows = [load.waiting[at : at + step] for at in range(0, len(load.waiting), step)]
    rows = [
        (
            f"{each[0][0] - load.waiting[0][0]:.0f} s",
            str(max(waiting for _, waiting, _ in each)),
            f"{max(size for *_, size in each) / 2**20:.0f}",
        )
        for each in windows
    ]
    ends = [(name, str(count)) for name, count in load.ends.most_common()]
    ends += [("sent", str(len(requests))), ("left in the server", str(sum(left.values())))]
    tables = [
        Table(f"{options.model.name}, {len(requests)} requests", ("ended", "requests"), ends),
        Table("over time", ("from", "waiting, at most", "MiB resident, at most"), rows),
    ]
    publish(tables, {"ends": load.ends, "over time": load.waiting}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
