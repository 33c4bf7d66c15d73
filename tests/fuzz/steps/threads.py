"""Several threads at once."""

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import pick
from ..side import Side
from .generating import generate
from .step import Step

LONGEST = 60.0
"""Seconds after which a thread counts as one that waits for ever."""


@dataclass(frozen=True)
class Threads(Step):
    """Each has its own prompt, and in some a weight is read."""

    likelihood: ClassVar[int] = 4

    count: int = pick(2, 4)
    reading: bool = pick(False, True)
    work: str = pick("forward", "generate")

    def run(self, side: Side) -> Any:
        found: list[Any] = [None] * self.count

        def work(number: int) -> None:
            try:
                found[number] = self._work(side, number)
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST)
            if thread.is_alive():
                raise TimeoutError("a thread waits for ever")
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    def _work(self, side: Side, number: int) -> Any:
        with torch.no_grad():
            if self.reading and number % 2:
                return [p.float().sum() for _, p in side.parameters()[:3]]
            ids = side.ids(1, 4 + 3 * number, seed=number)
            if self.work == "forward":
                return side.model(ids).logits
            return generate(side, {"input_ids": ids}, "greedy", 6, "plain")
