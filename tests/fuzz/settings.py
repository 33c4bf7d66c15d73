"""The settings of cases: how a model is opened, within which memory, and in which format."""

import random
from dataclasses import dataclass
from typing import Any, Self

from penstock.tiering.units import parse_size

from .fields import draw, pick
from .model_spec import ModelSpec
from .outcome.closeness import Closeness

LOSSY = ("int8", "int4", "nested", "stacked")
BOUNDED, SMALL = "2MiB", "64KiB"
"""[kv] host: with the first, a forward has eager's bits where all that attention takes is within a quarter of it. With
the second, attention goes page by page."""


@dataclass(frozen=True)
class Settings:
    """What ``penstock.load`` gets. ``budget`` is a share of the weights, "least" or "default"."""

    opened: str = pick("load", "load", "load", "wrap", "bundle")
    budget: str = pick("least", "least", "least", "0.5", "1.1", "default")
    format: str = pick(*["as-is"] * 7, "lossless", *LOSSY)
    kv: str = pick(*["auto"] * 5, BOUNDED, SMALL)
    prefix: bool = pick(*[False] * 5, True)
    device: str = pick(*["cpu"] * 6, "emulated")
    backend: str = pick("auto", "auto", "threads", "buffered", "io_uring")
    eviction: str = pick("auto", "auto", "lru", "lfu")
    attention: str = pick("eager", "eager", "sdpa")
    processor: str = pick(*["own"] * 9, "old")

    @classmethod
    def draw(cls, dice: random.Random, model: ModelSpec) -> Self:
        found = draw(cls, dice)
        changes: dict[str, Any] = {}
        if model.quantised != "no" or model.written == "own code":
            changes |= {"format": "as-is", "opened": "load" if found.opened == "wrap" else found.opened}
        if model.head != "causal" and found.opened == "load":
            changes["opened"] = "wrap"
        if found.kv != "auto":
            changes["attention"] = "eager"
        if found.prefix and found.kv == SMALL:
            changes["kv"] = "auto"
        return cls(**{**vars(found), **changes})

    def closeness(self, model: ModelSpec) -> Closeness:
        """How close Penstock's numbers must be to transformers'."""
        if self.format in LOSSY or model.quantised != "no":
            rough = model.quantised != "no" or model.dtype == "bfloat16"  # quantised ones compute in bfloat16
            return Closeness.ROUGH_FORMAT if rough else Closeness.FORMAT
        if self.kv == SMALL or self.prefix:
            return Closeness.SUMS
        return Closeness.BITS

    @property
    def kv_bytes(self) -> int:
        """[kv] host in bytes; 0: keys and values are left to transformers."""
        return 0 if self.kv == "auto" else int(parse_size(self.kv))

    @property
    def options(self) -> dict[str, Any]:
        """Those that go to ``load`` and ``wrap`` alike, without the budgets."""
        found: dict[str, Any] = {"weights_format": self.format, "io_backend": self.backend}
        found |= {"experts_eviction": self.eviction, "threads": 1}
        if self.kv != "auto":
            found["kv_host_memory"] = self.kv
        if self.prefix:
            found["kv_prefix"] = "64MiB"
        return found
