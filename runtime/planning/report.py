"""The report of a plan: what to expect of a model, as values and as JSON (pure)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...tiering.planner.arrangement import Arrangement
from ...tiering.policy.lessons import Span
from ...tiering.policy.measured import Measured, doubts_in_words
from ...tiering.policy.placement.placement import Placement
from ..forecasting.forecast import Forecast

_BUSY = 0.9
"""Share of the machine's speed below which it is worth saying that others take the rest."""


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    """A row of the curve: what ``host_memory`` bytes promise; ``tokens_per_second_per_gib`` is what each GiB buys since
    the row before, None in the first one."""

    host_memory: int
    forecast: Forecast
    tokens_per_second_per_gib: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields of a row in ``penstock plan --json``."""
        gained = {"tokens_per_second_per_gib": self.tokens_per_second_per_gib}
        return {"host_memory": self.host_memory, **_fields(self.forecast), **gained}


@dataclass(frozen=True, slots=True)
class KvPlan:
    """KV of a context of ``context`` tokens: ``total`` bytes, ``per_token`` of them for each token, ``host_memory``
    bytes for pages, and ``flash`` bytes that every token reads from flash. None where that is not known without the
    model's weights, or, for ``flash``, without memory for them."""

    context: int
    host_memory: int
    total: int | None = None
    per_token: int | None = None
    flash: int | None = None

    def to_dict(self) -> dict[str, int | None]:
        """The fields in ``penstock plan --json``."""
        return {
            "context": self.context,
            "kv_bytes": self.total,
            "kv_bytes_per_token": self.per_token,
            "kv_host_memory": self.host_memory,
            "kv_flash_bytes": self.flash,
            "kv_flash_bytes_per_token": self.flash,
        }


@dataclass(frozen=True, slots=True)
class MeasuredSpeeds:
    """What a forecast rests on: bytes of weights that a token uses, and bytes per second of the drives together, of
    memory, and of the bus to a device, if there is one."""

    memory_bytes_per_token: int
    flash_bytes_per_second: float
    memory_bytes_per_second: float
    bus_bytes_per_second: float | None


@dataclass(frozen=True, slots=True)
class RestsOn:
    """The measurements behind a forecast: of computing and of each drive; the number of earlier runs of the model that
    corrected it, and when the latest ended, in seconds since 1970, and whether all were beside
    other programs; and the share of the machine's speed that other
    programs left when it was looked at."""

    computing: Measured
    drives: tuple[Measured, ...]
    runs: int = 0
    latest_run: float | None = None
    runs_beside: bool = False
    left: float = 1.0

    def caveats(self) -> list[str]:
        """Why to doubt the forecast, in sentences."""
        notes = []
        named = [("computing", self.computing), *(("the drive", drive) for drive in self.drives)]
        for what, measured in dict(named).items():
            if measured.doubtful:
                words = doubts_in_words(measured.doubts, measured.others)
                notes.append(f"rates of {what} are doubtful ({words}); run penstock doctor on an idle machine")
        if self.runs_beside:
            notes.append("other programs took cores beside all earlier runs; what these took counts half")
        if self.left < _BUSY:
            notes.append(f"other programs leave about {self.left:.0%} of this machine's speed now")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The object "rests_on" in ``penstock plan --json``."""
        return {
            "computing": self.computing.to_dict(),
            "drives": [drive.to_dict() for drive in self.drives],
            "runs": self.runs,
            "latest_run": self.latest_run,
            "runs_beside": self.runs_beside,
            "left": self.left,
        }


@dataclass(frozen=True, slots=True)
class ExactPlan:
    """The two formats that keep every bit: ``auto`` is the one that format "auto" takes for a new bundle, and ``why``
    the rest of a sentence about it. ``packed`` is the format of the bundle that is there, which is used; None where
    none is. ``tokens_per_second`` of each, None where it does not fit; empty where there was nothing to compare."""

    auto: str
    why: str
    packed: str | None
    tokens_per_second: Mapping[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """The object "exact" in ``penstock plan --json``."""
        return {
            "auto": self.auto,
            "why": self.why,
            "packed": self.packed,
            "tokens_per_second": dict(self.tokens_per_second),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to expect of a model. Sizes are bytes, for weights and KV together where nothing else is said.

    ``fits``: there is memory and flash for it. ``arrangement`` is where everything goes and ``forecast`` how fast that
    is, within ``range``, on drives and memory with ``speeds``, which ``rests_on`` measurements; None where it does not
    fit into memory. ``minimum_host_memory`` is the
    least that would do; None where a device has too little memory. ``curve`` has a row for each of some budgets,
    ``recommended_host_memory`` is one that is nearly as fast as all the memory of this machine. Packing takes
    ``flash_needed`` bytes of ``flash_free``; 0 where it is packed. ``routing`` names the text of the routing trace, or
    is "assumed"; None without experts. ``exact`` compares the exact formats, where settings ask for one of them and
    there is a checkpoint. ``notes`` are sentences about what was taken for granted, or is in the way.
    """

    fits: bool
    notes: tuple[str, ...]
    model_bytes: int
    prompt_tokens: int
    arrangement: Arrangement | None = None
    forecast: Forecast | None = None
    range: Span | None = None
    speeds: MeasuredSpeeds | None = None
    rests_on: RestsOn | None = None
    minimum_host_memory: int | None = None
    recommended_host_memory: int | None = None
    host_memory: int | None = None
    device_memory: int = 0
    flash_needed: int = 0
    flash_free: int | None = None
    kv: KvPlan | None = None
    curve: tuple[BudgetForecast, ...] = ()
    routing: str | None = None
    exact: ExactPlan | None = None

    @property
    def host_memory_floor(self) -> int | None:
        """Bytes of host memory that stay when the machine runs short of memory."""
        return None if self.arrangement is None else self.arrangement.floor

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding with a warm cache; None where the model does not fit into memory, as of the next four."""
        return None if self.forecast is None else self.forecast.tokens_per_second

    @property
    def tokens_per_second_from(self) -> float | None:
        """The least speed that is to be expected, by the spread of what the plan rests on."""
        return None if self.range is None else self.range.least

    @property
    def tokens_per_second_to(self) -> float | None:
        """The highest speed that is to be expected."""
        return None if self.range is None else self.range.most

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds for a prompt of ``prompt_tokens`` tokens."""
        return None if self.forecast is None else self.forecast.time_to_first_token_s

    @property
    def flash_bytes_per_token(self) -> int | None:
        """Bytes that a token reads from flash."""
        return None if self.forecast is None else self.forecast.flash_bytes_per_token

    @property
    def hit_ratio(self) -> float | None:
        """Share of requested experts, or streamed layers, that are found in memory."""
        return None if self.forecast is None else self.forecast.hit_ratio

    @property
    def limited_by(self) -> str | None:
        """What is busy longest: "flash", "bus", "memory" or "compute"."""
        return None if self.forecast is None else self.forecast.limited_by

    def to_dict(self) -> dict[str, Any]:
        """The object that ``penstock plan --json`` prints."""
        unknown = dict.fromkeys(
            ("tokens_per_second", "time_to_first_token_s", "flash_bytes_per_token", "hit_ratio", "limited_by")
        )
        found: dict[str, Any] = {"fits": self.fits, **unknown, "minimum_host_memory": self.minimum_host_memory}
        if self.host_memory is not None:
            found |= {
                "host_memory": self.host_memory,
                "host_memory_floor": self.host_memory_floor,
                "device_memory": self.device_memory,
                "flash_needed": self.flash_needed,
                "flash_free": self.flash_free,
                "prompt_tokens": self.prompt_tokens,
                "routing": self.routing,
            }
        found |= {
            "model_bytes": self.model_bytes,
            **({} if self.kv is None else self.kv.to_dict()),
            "recommended_host_memory": self.recommended_host_memory,
            "curve": [row.to_dict() for row in self.curve],
            "notes": list(self.notes),
        }
        if self.arrangement is not None and self.forecast is not None and self.speeds is not None:
            found |= _fields(self.forecast) | asdict(self.speeds)
            found["tokens_per_second_from"] = self.tokens_per_second_from
            found["tokens_per_second_to"] = self.tokens_per_second_to
            found["exact"] = None if self.exact is None else self.exact.to_dict()
            found["rests_on"] = None if self.rests_on is None else self.rests_on.to_dict()
            found["placement"] = _describe(self.arrangement.host)
            if self.arrangement.device is not None:
                found["device_placement"] = _describe(self.arrangement.device)
        return found


def _fields(forecast: Forecast) -> dict[str, Any]:
    return {name: value for name, value in asdict(forecast).items() if value is not None}


def _describe(placement: Placement) -> dict[str, int]:
    names = ("resident", "pinned", "streamed", "stream_region", "row_cache", "expert_region", "expert_total")
    sizes = {f"{name}_bytes": getattr(placement, f"{name}_bytes") for name in names}
    return sizes | {"expert_count": placement.expert_count}
