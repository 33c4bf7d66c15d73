"""Forked children."""

import multiprocessing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import pick
from ..side import Side
from .step import Step

LONGEST = 20.0
"""Seconds after which a child counts as one that waits for ever."""


@dataclass(frozen=True)
class Fork(Step):
    """A child computes, or reads a weight."""

    likelihood: ClassVar[int] = 2

    work: str = pick("forward", "read", "loader")

    def run(self, side: Side) -> Any:
        if self.work == "loader":
            data = [torch.full((2,), float(number)) for number in range(4)]
            return list(torch.utils.data.DataLoader(data, batch_size=2, num_workers=1))
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=self._work, args=(side, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            if not ours.poll(LONGEST):
                raise TimeoutError("a forked child waits for ever")
            found = ours.recv()
        except EOFError:
            raise RuntimeError("a forked child died") from None
        finally:
            child.kill()
            child.join()
        if isinstance(found, BaseException):
            raise found
        return torch.tensor(found)

    def _work(self, side: Side, pipe: Any) -> None:
        try:
            with torch.no_grad():
                if self.work == "forward":
                    pipe.send(side.model(side.ids(1, 5)).logits.float().tolist())
                else:
                    pipe.send([float(p.float().sum()) for _, p in side.parameters()])
        except BaseException as error:
            try:
                pipe.send(error)
            except Exception:
                pipe.send(RuntimeError(str(error)))
