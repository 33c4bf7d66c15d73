"""Streams several answers at the same time in an asyncio program, and stops them cleanly.

    python examples/stream_in_asyncio.py
    python examples/stream_in_asyncio.py MODEL --host-memory 8GiB --timeout 30 --prompt "Once" --prompt "Twice"

Each answer is generated in a thread, so the event loop stays free. Its text arrives piece by piece. An answer that
takes longer than --timeout is stopped, and Ctrl-C stops all of them. Both wait until the threads have ended.
"""

import argparse
import asyncio
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AsyncTextIteratorStreamer, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

import penstock

TINY = Path(__file__).parent / "tiny-moe"
PROMPTS = ["The old man went down to the river", "It was a dark evening in November", "My dear sir, said the lady"]


class StopWhenSet(StoppingCriteria):
    """Ends generation after the token at which the event ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)


async def answer(number: int, model: Any, tokenizer: Any, prompt: str, options: argparse.Namespace) -> None:
    """Print an answer as it comes. When it is cancelled, it stops its thread before it ends."""
    stop = threading.Event()
    streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt")

    def generate() -> int:
        try:
            criteria = StoppingCriteriaList([StopWhenSet(stop)])
            output = model.generate(
                **inputs, max_new_tokens=options.tokens, do_sample=False, streamer=streamer, stopping_criteria=criteria
            )
            return int(output.shape[1] - inputs.input_ids.shape[1])
        except BaseException:
            streamer.end()  # else whoever reads the stream waits for ever
            raise

    work = asyncio.create_task(asyncio.to_thread(generate))
    try:
        async with asyncio.timeout(options.timeout):
            async for piece in streamer:
                if piece:
                    print(f"[{number}] {piece}", flush=True)
        print(f"[{number}] finished after {await work} tokens", flush=True)
    except TimeoutError:
        stop.set()
        print(f"[{number}] timed out after {await work} tokens", flush=True)
    finally:
        stop.set()
        await asyncio.wait([work])  # the thread uses the model until it ends


async def run(options: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # Loading takes a while, too: it belongs in a thread.
    model = await asyncio.to_thread(penstock.load, options.model, host_memory=options.host_memory, store=options.store)
    with model:
        async with asyncio.TaskGroup() as group:
            for number, prompt in enumerate(options.prompt or PROMPTS, 1):
                group.create_task(answer(number, model, tokenizer, prompt, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(TINY), metavar="MODEL", help="folder, hub id or bundle")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--tokens", type=int, default=32, help="how many to generate for each prompt")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop an answer after this time")
    parser.add_argument("--host-memory", default="8MiB", help='memory for the weights, such as "8GiB"')
    parser.add_argument("--store", help="folder for packed models; else ~/.cache/penstock")
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


if __name__ == "__main__":
    main()
