"""Errors and Ctrl-C in the middle of work. What was interrupted is not compared; what comes after it is."""

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers.generation.streamers import BaseStreamer

from tests.support.interrupting import interrupt, lines_of

from ..fields import pick
from ..side import Side
from .step import Step

MOMENTS = 40
"""Lines of a forward at which Ctrl-C comes."""


class _Wrong(Exception):
    """What a user's own code raises."""


class _Streamer(BaseStreamer):
    def __init__(self, left: int, error: type[BaseException]) -> None:
        self._left, self._error = left, error

    def put(self, value: Any) -> None:
        self._left -= 1
        if not self._left:
            raise self._error

    def end(self) -> None:
        """Nothing is printed."""


@dataclass(frozen=True)
class Interrupt(Step):
    """An error comes from a streamer, from a hook, or from a signal at some moment. Written out, not drawn, it may also
    come at ``lines``: Ctrl-C at one line of Penstock after the other, from number ``after`` on."""

    likelihood: ClassVar[int] = 5

    where: str = pick("streamer", "hook", "signal", "processor")
    error: str = pick("KeyboardInterrupt", "Exception")
    after: int = pick(3, 1, 8, 20)
    """Tokens, modules or milliseconds."""

    def run(self, side: Side) -> Any:
        error = KeyboardInterrupt if self.error == "KeyboardInterrupt" else _Wrong
        try:
            if self.where == "signal":
                self._signal(side)
            elif self.where == "lines":
                self._lines(side)
            elif self.where == "hook":
                self._hook(side, error)
            else:
                streamer = _Streamer(min(self.after, 4), error)
                side.model.generate(side.ids(1, 9), max_new_tokens=6, streamer=streamer, pad_token_id=0)
        except (KeyboardInterrupt, _Wrong):
            pass

    def _hook(self, side: Side, error: type[BaseException]) -> None:
        left = [self.after]

        def raise_(*_: Any) -> None:
            left[0] -= 1
            if not left[0]:
                raise error

        handles = [module.register_forward_hook(raise_) for _, module in side.modules(torch.nn.Module)]
        try:
            side.model(side.ids(1, 9))
        finally:
            for handle in handles:
                handle.remove()

    def _lines(self, side: Side) -> None:
        def call() -> None:
            side.model(side.ids(1, 9))

        lines = lines_of(call)
        for number in lines[self.after :: max(1, len(lines) // MOMENTS)]:
            interrupt(call, number)

    def _signal(self, side: Side) -> None:
        over = threading.Event()

        def interrupt() -> None:
            if not over.wait(self.after / 1000):
                os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        try:
            side.model.generate(side.ids(1, 30), max_new_tokens=20, pad_token_id=0)
            over.set()
            thread.join()
        finally:
            over.set()
