"""Requests as servers see them (pure, standard library only): bursts, many short ones, few long ones.

Times between arrivals have a Gamma distribution. With a shape below 1 they come in bursts. Lengths have a Zipf
distribution. Both are what "BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems" found.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that comes ``at`` a time in seconds, of ``prompt`` tokens, for ``answer`` more. Its client goes away
    after ``leaves`` seconds; None: it stays."""

    at: float
    prompt: int
    answer: int
    leaves: float | None


def arrivals(
    *, rate: float, shape: float, zipf: float, most: int, seconds: float, leaving: float, seed: int
) -> Iterator[Arrival]:
    """Yield ``rate`` requests a second, for ``seconds``. ``shape`` is that of the Gamma distribution, ``zipf`` the
    exponent of lengths, of up to ``most`` tokens. A share of ``leaving`` clients goes away."""
    chance = random.Random(seed)
    lengths = range(1, most + 1)
    weights = [length**-zipf for length in lengths]
    at = 0.0
    while True:
        at += chance.gammavariate(shape, 1 / (rate * shape))
        if at >= seconds:
            return
        prompt, answer = chance.choices(lengths, weights, k=2)
        yield Arrival(at, prompt, answer, chance.uniform(0, 5) if chance.random() < leaving else None)
