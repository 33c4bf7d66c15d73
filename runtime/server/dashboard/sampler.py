"""What a model does now: rates since the last look, how full its memory is, which experts are hot."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ....tiering.errors import Closed
from ....tiering.planner.occupancy import ExpertUse, TierUse
from ....tiering.serving.limits import Moment, find_limit
from ...engine.stats import Stats
from ..answers.served import ServedModel

_STAYS = 0.9
"""What a second leaves of the heat of an expert."""
_LEVELS = 9


class Watch:
    """Looks at a model that may leave memory and come back."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._watching = ExitStack()
        self._model: Any = None
        self._sampler: Sampler | None = None

    def sample(self) -> dict[str, Any]:
        """What is now, for JSON."""
        try:
            sampler = self._present()
            if sampler is not None:
                return sampler.sample()
        except Closed:  # it has just left
            self.close()
        return {
            "requests": self._served.engine.counts(),
            "tokens_per_second": 0.0,
            "flash_bytes_per_second": 0.0,
            "hit_ratio": None,
            "limit": {"what": "away", "why": "another model has the memory"},
            "memory": [],
            "experts": [],
            "journal": self._served.journal.report(),
        }

    def _present(self) -> "Sampler | None":
        model = self._served.model
        if model is not self._model:
            self.close()
            if model is not None:
                look = self._watching.enter_context(model.penstock.watch())
                self._model, self._sampler = model, Sampler(self._served, model, look)
        return self._sampler

    def close(self) -> None:
        """Stop counting. Idempotent."""
        self._watching.close()
        self._model = self._sampler = None


class Sampler:
    """Looks at one model, which is in memory, from time to time."""

    def __init__(self, served: ServedModel, model: Any, look: Callable[[], Mapping[str, TierUse]]) -> None:
        """``model`` is the one that computes for ``served``, ``look`` is what its ``watch`` gives."""
        self._served, self._model, self._look = served, model, look
        self._heat: dict[str, list[float]] = {}
        self._uses: dict[str, tuple[int, ...]] = {}
        stats = model.penstock.stats()
        self._before = stats, served.engine.tokens, self._moment(stats)

    def sample(self) -> dict[str, Any]:
        """What is now, for JSON."""
        served = self._served
        stats, tokens = self._model.penstock.stats(), served.engine.tokens
        before, tokens_before, moment_before = self._before
        moment = self._moment(stats)
        self._before = stats, tokens, moment
        seconds = max(moment.time - moment_before.time, 1e-9)
        limit = find_limit(moment_before, moment)
        tiers = self._look()
        return {
            "requests": served.engine.counts(),
            "tokens_per_second": (tokens - tokens_before) / seconds,
            "flash_bytes_per_second": (stats.flash_bytes_read - before.flash_bytes_read) / seconds,
            "hit_ratio": _hit_ratio(before, stats),
            "limit": {"what": limit.what, "why": limit.why},
            "memory": _memory(tiers, stats),
            "experts": self._experts([layer for tier in tiers.values() for layer in tier.experts], seconds),
            "journal": served.journal.report(),
        }

    def _moment(self, stats: Stats) -> Moment:
        engine = self._served.engine
        return Moment(
            time=time.monotonic(),
            stalled=stats.stall_seconds,
            kv_stalled=stats.kv_stall_seconds,
            reading=stats.flash_read_seconds,
            rows=engine.rows,
            memory=stats.host_limit,
            budget=stats.host_budget,
            **engine.counts(),
        )

    def _experts(self, layers: Sequence[ExpertUse], seconds: float) -> list[dict[str, str]]:
        """The layers' experts by number, a digit each: how hot it is, and whether it is in memory."""
        stays = _STAYS**seconds
        for layer in layers:
            known = self._uses.get(layer.module, (0,) * len(layer.uses))
            heat = self._heat.get(layer.module, [0.0] * len(layer.uses))
            self._heat[layer.module] = [
                old * stays + now - was for old, now, was in zip(heat, layer.uses, known, strict=True)
            ]
            self._uses[layer.module] = layer.uses
        most = max((heat for layer in layers for heat in self._heat[layer.module]), default=0.0)
        return [
            {
                "module": layer.module,
                "heat": "".join(str(level_of(heat, most)) for heat in self._heat[layer.module]),
                "here": "".join("01"[here] for here in layer.here),
            }
            for layer in layers
        ]


def level_of(heat: float, most: float) -> int:
    """From 0 to 9, by orders of magnitude, where ``most`` is the most that any has."""
    if heat < 0.5:
        return 0
    return max(1, min(_LEVELS, round(_LEVELS * math.log1p(heat) / math.log1p(most))))


def _hit_ratio(before: Stats, now: Stats) -> float | None:
    """Of what was asked for between the two; None if nothing was."""
    kind = "expert" if now.expert_hits + now.expert_misses else "dense"
    hits = getattr(now, f"{kind}_hits") - getattr(before, f"{kind}_hits")
    misses = getattr(now, f"{kind}_misses") - getattr(before, f"{kind}_misses")
    return hits / (hits + misses) if hits + misses > 0 else None


def _memory(tiers: Mapping[str, TierUse], stats: Stats) -> list[dict[str, Any]]:
    """Parts of memory: where, what for, bytes in use, and the most that may be used now; None: no bound."""
    found = [
        {"tier": name, "part": region.name, "used": region.used, "limit": region.limit, "most": region.capacity}
        for name, tier in tiers.items()
        for region in tier.regions
    ]
    found.insert(0, _part("host", "in all", stats.resident_bytes, stats.host_limit, stats.host_budget))
    if stats.kv_device_budget:
        found.append(_part("device", "kv pages", stats.kv_device_bytes, stats.kv_device_budget))
    if stats.kv_host_budget:
        found.append(_part("host", "kv pages", stats.kv_host_bytes, stats.kv_host_limit, stats.kv_host_budget))
        found.append(_part("flash", "kv pages", stats.kv_flash_bytes))
    if stats.kv_unbounded_bytes:
        found.append(_part("host", "kv", stats.kv_unbounded_bytes))
    if stats.changed_bytes:
        found.append(_part("host", "changed weights", stats.changed_bytes))
    return found


def _part(tier: str, part: str, used: int, limit: int | None = None, most: int | None = None) -> dict[str, Any]:
    return {"tier": tier, "part": part, "used": used, "limit": limit, "most": limit if most is None else most}
