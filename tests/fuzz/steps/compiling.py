"""``torch.compile``."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..fields import pick
from ..side import Side
from .step import Step


@dataclass(frozen=True)
class Compile(Step):
    """Logits of a compiled model, which Penstock leaves uncompiled; so is transformers', for a compiled one may round
    otherwise (Mamba's does). Inductor is left out: it takes too long for this."""

    likelihood: ClassVar[int] = 2

    backend: str = pick("eager", "aot_eager")
    times: int = pick(2, 1)

    def run(self, side: Side) -> Any:
        torch._dynamo.reset()
        compiled = torch.compile(side.model, backend=self.backend) if side.ours else side.model
        try:
            with torch.no_grad():
                return [compiled(**side.inputs(1, 5 + number)).logits for number in range(self.times)]
        finally:
            torch._dynamo.reset()
