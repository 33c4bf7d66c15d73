"""Opening and closing."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Reopen(Step):
    """The model is closed and opened again."""

    likelihood: ClassVar[int] = 4

    twice: bool = pick(False, True)

    def run(self, side: Side) -> Any:
        if self.twice and side.ours:
            side.base.penstock.close()
        side.open()


@dataclass(frozen=True)
class Move(Step):
    """``to`` and its kin."""

    likelihood: ClassVar[int] = 2

    how: str = pick("same dtype", "cpu", "float", "half", "eval", "train", "checkpointing")

    def run(self, side: Side) -> Any:
        base = side.base
        if self.how == "same dtype":
            base.to(base.dtype)
        elif self.how == "cpu":
            base.to("cpu")
        elif self.how == "float":
            base.float()
        elif self.how == "half":
            base.half()
        elif self.how == "eval":
            base.eval()
        elif self.how == "train":
            base.train()
        else:
            base.gradient_checkpointing_enable()
