"""Weights that users read outside of any forward."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy
import torch

from ..fields import pick
from ..side import Side
from .step import Step


def _saved(weight: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    found: torch.Tensor = torch.load(file)
    return found


READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "norm": lambda w: w.float().norm(),
    "linalg norm": lambda w: torch.linalg.vector_norm(w.float()),
    "sum": lambda w: w.double().sum(),
    "mean": lambda w: w.float().mean().item(),
    "transpose": lambda w: (w.T if w.dim() == 2 else w).float().sum(0),
    "slice": lambda w: w[:2].clone(),
    "index": lambda w: w[0].detach().clone(),
    "select": lambda w: torch.index_select(w, 0, torch.tensor([0])),
    "product": lambda w: w.reshape(-1) @ w.reshape(-1),
    "clone": lambda w: w.detach().clone(),
    "data": lambda w: w.data.float().std(),
    "to": lambda w: w.to(torch.float64),
    "numpy": lambda w: torch.from_numpy(numpy.array(w.detach().float().numpy())),
    "list": lambda w: torch.tensor(w.flatten()[:5].tolist()),
    "nan": lambda w: bool(torch.isnan(w).any()),
    "allclose": lambda w: bool(torch.allclose(w, w)),
    "equal": lambda w: bool(torch.equal(w, w.clone())),
    "save": _saved,
    "new": lambda w: torch.zeros_like(w) + w,
    "stack": lambda w: torch.stack([w, w]).float().mean(),
    "cat": lambda w: torch.cat([w.flatten(), w.flatten()])[:7],
    "view": lambda w: w.view(-1)[:4] * 2,
    "chunk": lambda w: w.chunk(2, 0)[0].clone(),
    "looks": lambda w: [str(w.dtype), str(w.device), list(w.shape), w.numel(), w.requires_grad, w.is_contiguous()],
    "iterate": lambda w: [float(row.float().sum()) for row, _ in zip(w, range(2), strict=False)],
    "format": lambda w: f"{w.flatten()[0].item():.3e}",
    "truth": lambda w: bool((w == w).all()),
    "out": lambda w: torch.add(w.detach(), 0, out=torch.empty_like(w.detach())),
    "deepcopy": lambda w: __import__("copy").deepcopy(w.detach()),
}


@dataclass(frozen=True)
class ReadOne(Step):
    """One weight, in one way."""

    likelihood: ClassVar[int] = 8

    how: str = pick(*READS)
    which: int = pick(0, 1, 2, 5, 9, -1)

    def run(self, side: Side) -> Any:
        found = side.parameters()
        return READS[self.how](found[self.which % len(found)][1])


@dataclass(frozen=True)
class ReadAll(Step):
    """All weights, in one way."""

    likelihood: ClassVar[int] = 5

    how: str = pick("norm", "sum", "nan", "clone", "data", "looks")

    def run(self, side: Side) -> Any:
        with torch.no_grad():
            return {name: READS[self.how](p) for name, p in side.parameters()}


@dataclass(frozen=True)
class Survey(Step):
    """What libraries ask of a whole model."""

    likelihood: ClassVar[int] = 5

    what: str = pick("count", "footprint", "vector", "grad norm", "state", "state names", "get", "dtypes", "buffers")

    def run(self, side: Side) -> Any:
        base = side.base
        if self.what == "count":
            return [base.num_parameters(), sum(p.numel() for _, p in side.parameters())]
        if self.what == "footprint":
            return sum(p.numel() * p.element_size() for p in base.parameters())
        if self.what == "vector":
            return torch.nn.utils.parameters_to_vector(p.detach().float() for _, p in side.parameters())
        if self.what == "grad norm":
            return math.fsum(float(p.detach().double().square().sum()) for _, p in side.parameters())
        if self.what == "state":
            return {name: tensor.clone() for name, tensor in base.state_dict().items()}
        if self.what == "state names":
            return sorted(base.state_dict())
        if self.what == "get":
            return base.get_parameter(side.parameters()[0][0]).detach().clone()
        if self.what == "dtypes":
            return [str(base.dtype), str(base.device), sorted({str(p.dtype) for p in base.parameters()})]
        return {name: buffer.clone() for name, buffer in base.named_buffers()}


@dataclass(frozen=True)
class KeepWeight(Step):
    """A weight that the user keeps a reference to, from outside or from a hook while the model computes."""

    likelihood: ClassVar[int] = 5

    where: str = pick("outside", "hook", "data", "slice")
    which: int = pick(1, 0, 4, -1)

    def run(self, side: Side) -> Any:
        if self.where != "hook":
            weight = side.parameters()[self.which % len(side.parameters())][1]
            side.kept.append({"outside": weight, "data": weight.data, "slice": weight[:3]}[self.where])
            return None
        linear = side.modules(torch.nn.Linear)
        if not linear:
            return None
        module = linear[self.which % len(linear)][1]
        handle = module.register_forward_hook(lambda module, *_: side.kept.append(module.weight))
        try:
            with torch.no_grad():
                side.model(**side.inputs(1, 4))
        finally:
            handle.remove()
        return None


@dataclass(frozen=True)
class ReadKept(Step):
    """The weights that were kept, read later."""

    likelihood: ClassVar[int] = 5

    def run(self, side: Side) -> Any:
        with torch.no_grad():
            return [weight.float().sum() for weight in side.kept]
