"""``penstock plan``: will a model fit, what goes where, how fast will it be, what would more memory buy; nothing is
packed."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import BudgetTooSmall
from ...tiering.policy.placement.budgets import ENOUGH, budgets, enough
from ...tiering.policy.placement.placement import Placement, with_working_memory
from ...tiering.store.bundle.folder import bundle_bytes, size_of
from ...tiering.store.bundle.stripes import parts_of
from ...tiering.units import GiB, format_size
from ..machine.speeds import existing
from .console import print_json, print_table, quiet_libraries, waiting
from .options import Settings, Source
from .planned_device import DeviceAbove, device_of
from .sketch import Drives, Sketch, drives_of, sketch

if TYPE_CHECKING:
    from ...tiering.sim.kv import KvLoad
    from ..config.config import Config
    from ..loading.arrangement import Outline
    from ..planning.forecast import Forecast
    from ..routing.routes import Routes

_UNKNOWN = (
    "tokens_per_second",
    "time_to_first_token_s",
    "flash_bytes_per_token",
    "hit_ratio",
    "limited_by",
    "minimum_host_memory",
    "recommended_host_memory",
)
"""What ``--json`` does not know of a model that does not fit at all."""


def command(
    source: Source,
    settings: Settings,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Length of the prompt for the time to the first token.")
    ] = 512,
    context: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens whose keys and values each token looks at.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="TRACE", help="Routing trace, from penstock profile --out.")
    ] = None,
) -> None:
    """Say whether MODEL fits, what goes where, how fast it will be here, and what more memory would buy, by simulating
    it on what this machine was measured to be. Where nothing was measured yet, that takes some seconds.

    That it does not fit is an answer, not an error: the exit code is 0, see "fits" in --json.
    """
    config = settings.load()
    quiet_libraries()
    routes = _routes(profile)
    found = sketch(source, config.store.path, config.rules, config.weights.quality)
    outline = found.outline
    if routes is not None:
        routes.check_model({layer.path: layer.experts for layer in outline.layers}, source.model)
    above = device_of(config, outline.total_bytes + outline.scratch)
    try:
        least = outline.least_budget if above is None else outline.least_below(above.memory)
    except BudgetTooSmall as error:  # of the device's memory: no host memory would do
        refusal = dict.fromkeys(_UNKNOWN) | {"fits": False, "model_bytes": outline.total_bytes, "notes": [str(error)]}
        print_json(refusal | {"curve": []}) if settings.json else print(f"Does not fit: {error}.")
        return
    whole = with_working_memory(outline.total_bytes)
    kv = None if context is None else _kv(found.model, context, config)
    pages = config.kv_host or 0
    budget = config.host_budget(outline.total_bytes + pages) - pages
    with waiting("measuring and simulating"):
        places = [config.store.path, *config.store.stripes]
        found, drives = drives_of(found, _place(outline, max(budget, least), above)[0], places, config.io)
        plan = _Plan(found, drives, config, routes, prompt_tokens, above, kv)
        curve = {each: plan.at(each) for each in budgets(least, whole, budget)}
    needed = 0 if found.bundle else found.layout.total_bytes
    free = flash_free(places, config.flash_limit, None if found.bundle else drives.shares)
    notes: list[str] = []
    if context is not None and kv is None:
        notes.append("what keys and values of this model take cannot be told without its weights; they are not counted")
    if needed > free:
        notes.append(f"packing needs {format_size(needed)} on flash, there is room for {format_size(free)}")
    report: dict[str, Any] = {
        "fits": False,
        "tokens_per_second": None,
        "time_to_first_token_s": None,
        "flash_bytes_per_token": None,
        "hit_ratio": None,
        "limited_by": None,
        "minimum_host_memory": least + pages,
        "host_memory": budget + pages,
        "host_memory_floor": None,
        "device_memory": 0 if above is None else above.memory,
        "model_bytes": found.layout.total_bytes,
        "flash_needed": needed,
        "flash_free": free,
        "prompt_tokens": prompt_tokens,
        **_kv_report(kv, context, pages),
        "recommended_host_memory": _recommended(curve),
        "curve": [row | {"host_memory": row["host_memory"] + pages} for row in _rows(curve)],
        "routing": plan.routing,
        "notes": notes,
    }
    placement, on_device = None, None
    try:
        placement, on_device = _place(plan.outline, budget, above)
    except BudgetTooSmall as error:
        notes.append(str(error))
    else:
        floor = budget if above else plan.outline.divisions(placement, config.host_floor).floor
        report |= {"fits": needed <= free, "host_memory_floor": floor}
        report |= asdict(curve[budget]) | plan.speeds | {"placement": _placed(placement)}
        report |= {"device_placement": _placed(on_device)} if on_device else {}
        notes += plan.caveats
    if settings.json:
        print_json(report)
    else:
        _print(report, placement, on_device)


def _place(outline: "Outline", host: int, above: DeviceAbove | None) -> tuple[Placement, Placement | None]:
    """What goes where in ``host`` bytes, and on a device above them. Raises BudgetTooSmall."""
    if above is None:
        return outline.place(host), None
    tiers = outline.place_in_tiers(above.memory, host)
    return tiers.host, tiers.device


def _routes(profile: str | None) -> "Routes | None":
    """The routing trace in the file ``profile``. Raises TraceError."""
    if profile is None:
        return None
    from ..routing.routes import Routes

    return Routes.load(profile)


class _Plan:
    """What a sketched model does on its drives and on the cores of this machine, under any budget."""

    def __init__(
        self,
        found: Sketch,
        drives: Drives,
        config: "Config",
        routes: "Routes | None",
        prompt_tokens: int,
        above: DeviceAbove | None,
        kv: "KvLoad | None",
    ) -> None:
        from ..planning.assumed import assumed_routes
        from ..planning.forecast import Devices, Forecaster, routed_tokens
        from ..planning.reference import timings_here

        self.outline = found.outline
        self._config, self._drives, self._above, self._kv = config, drives, above, kv
        layers = self.outline.layers
        self.routing = None if not layers else routes.text if routes else "assumed"
        if layers and routes is None:
            routes = assumed_routes(layers, routed_tokens(layers, prompt_tokens))
        timings = timings_here(existing(config.store.path), config.compute.threads)
        models = [timings.beside_cores(drive, experts=bool(layers)) for drive in drives.models]
        devices = Devices(models, drives.reading, timings)
        self._forecaster = Forecaster(self.outline, devices, routes, prompt_tokens=prompt_tokens)

    def at(self, budget: int) -> "Forecast":
        """Under ``budget`` bytes of host memory, which must be enough."""
        experts = self._config.experts
        policy: Any = {"eviction": experts.eviction, "guess": experts.prefetch == "auto"}
        if self._above is not None:
            tiers = self.outline.place_in_tiers(self._above.memory, budget)
            found = self._forecaster.forecast_tiers(tiers, self._above.bus, **policy)
        else:
            placement = self.outline.place(budget)
            divisions = self.outline.divisions(placement, self._config.host_floor)
            found = self._forecaster.forecast(placement, divisions, **policy)
        return found if self._kv is None else self._forecaster.with_kv(found, self._kv)

    @property
    def speeds(self) -> dict[str, Any]:
        return {
            "memory_bytes_per_token": self._forecaster.bytes_per_token,
            "flash_bytes_per_second": self._drives.bytes_per_second,
            "memory_bytes_per_second": self._forecaster.memory.bandwidth,
            "bus_bytes_per_second": None if self._above is None else self._above.bus.bandwidth,
        }

    @property
    def caveats(self) -> list[str]:
        """What the forecast takes for granted."""
        notes = []
        if self.routing == "assumed":
            notes.append(
                "which experts tokens use is assumed, as uneven and as repetitive as a small trained model's was; "
                "penstock profile MODEL --text FILE --out TRACE records it for --profile TRACE"
            )
        if self.outline.guessed:
            notes.append("nothing says how many experts a token uses; all of them are counted")
        if self._above is not None and self._above.unmeasured:
            notes.append("what computing takes on the device was not measured: the CPU's time is taken for it")
        if self._kv is None:
            notes.append("attention over a long context, and what else runs on the machine, are not counted")
        else:
            notes.append("KV is taken to be read beside weights without waiting, and attention to be exact")
        return notes


def _kv(model: Any, context: int, config: "Config") -> "KvLoad | None":
    """What KV of ``context`` tokens comes to; None where that is not known."""
    from ...tiering.sim.kv import KvLoad
    from ..planning.kv_size import count_kv_bytes, find_kv_layers

    layers = find_kv_layers(model)
    return None if layers is None else KvLoad.of(*count_kv_bytes(layers, context, config.kv.format), config.kv_host)


def _kv_report(kv: "KvLoad | None", context: int | None, pages: int) -> dict[str, int | None]:
    if context is None:
        return {}
    return {
        "context": context,
        "kv_bytes": None if kv is None else kv.total,
        "kv_bytes_per_token": None if kv is None else kv.per_token,
        "kv_host_memory": pages,
        "kv_flash_bytes": None if kv is None else kv.flash,
        "kv_flash_bytes_per_token": None if kv is None else kv.flash,
    }


def _recommended(curve: Mapping[int, "Forecast"]) -> int | None:
    """The least budget that is nearly as fast as all the memory that this machine has to spare; None where that is too
    little to run with."""
    from ...kernels.machine.machine import available_memory
    from ..config.config import auto_host_memory

    room = auto_host_memory(available_memory(), max(curve))
    points = [(budget, found.tokens_per_second) for budget, found in curve.items() if budget <= room]
    return enough(points) if points else None


def _rows(curve: Mapping[int, "Forecast"]) -> list[dict[str, Any]]:
    """A row for each budget; ``tokens_per_second_per_gib`` is what each GiB buys since the budget before."""
    rows: list[dict[str, Any]] = []
    for budget, found in curve.items():
        gained = None
        if rows:
            more = found.tokens_per_second - rows[-1]["tokens_per_second"]
            gained = more * GiB / (budget - rows[-1]["host_memory"])
        rows.append({"host_memory": budget, **asdict(found), "tokens_per_second_per_gib": gained})
    return rows


def _placed(placement: Placement) -> dict[str, int]:
    return {
        "resident_bytes": placement.resident_bytes,
        "pinned_bytes": placement.pinned_bytes,
        "streamed_bytes": placement.streamed_bytes,
        "stream_region_bytes": placement.stream_region_bytes,
        "row_cache_bytes": placement.row_cache_bytes,
        "expert_region_bytes": placement.expert_region_bytes,
        "expert_total_bytes": placement.expert_total_bytes,
        "expert_count": placement.expert_count,
    }


def flash_free(places: Sequence[Path], limit: int | None, shares: Sequence[float] | None = None) -> int:
    """Bytes that a new bundle may take in the store, the first of ``places``, and its stripes, the others, which need
    not exist yet; with each taking its share of them, if ``shares`` are given."""
    free: dict[int, int] = {}
    taken: dict[int, float] = {}
    for place, share in zip(places, shares or [1.0] * len(places), strict=True):
        folder = existing(place)
        device = folder.stat().st_dev
        free[device] = shutil.disk_usage(folder).free
        taken[device] = taken.get(device, 0.0) + share
    total = sum(taken.values())
    room = sum(free.values())
    if shares is not None:
        room = min(room, *(int(free[device] * total / taken[device]) for device in free))
    if limit is None:
        return room
    store = places[0]
    elsewhere = [part for stripe in places[1:] for part in parts_of(store, stripe) if not part.is_relative_to(store)]
    return max(0, min(room, limit - bundle_bytes(store) - sum(map(size_of, elsewhere))))


def _print(report: dict[str, Any], placement: Placement | None, on_device: Placement | None) -> None:
    verdict = "fits" if report["fits"] else "does not fit"
    print(
        f"{format_size(report['model_bytes'])} of weights, {format_size(report['host_memory'])} of host memory: "
        f"{verdict}. The least that would do: {format_size(report['minimum_host_memory'])}."
    )
    if on_device is not None:
        columns = ["what", "blocks", "bytes", "device memory", "where"]
        print_table("", columns, _where(on_device, "device", "host memory"))
    if report.get("kv_bytes") is not None:
        where = f"{format_size(report['kv_flash_bytes'])} of it on flash, read for each token"
        if not report["kv_host_memory"]:
            where = "left to transformers, in memory beside host memory; see [kv] host"
        print(
            f"KV of {report['context']} tokens: {format_size(report['kv_bytes'])} "
            f"({format_size(report['kv_bytes_per_token'])} a token), {where}."
        )
    if placement is not None:
        print_table("", ["what", "blocks", "bytes", "host memory", "where"], _where(placement, "memory", "flash"))
        print(
            f"About {report['tokens_per_second']:.2f} tokens/s, limited by {report['limited_by']}; "
            f"{format_size(report['flash_bytes_per_token'])} from flash and "
            f"{format_size(report['memory_bytes_per_token'])} from memory per token, {report['hit_ratio']:.0%} hits.\n"
            + _copying(report)
            + f"First token of a prompt of {report['prompt_tokens']} after "
            f"about {report['time_to_first_token_s']:.2f} s.\n"
            f"Measured: flash {report['flash_bytes_per_second'] / 1e9:.2f} GB/s, "
            f"memory {report['memory_bytes_per_second'] / 1e9:.1f} GB/s.\n"
            f"When the machine runs short of memory, down to {format_size(report['host_memory_floor'])} of host memory."
        )
    columns = ["host memory", "tokens/s", "each GiB buys", "first token, s", "from flash", "hits", "limited by"]
    print_table("", columns, [_cells(row) for row in report["curve"]])
    if report["recommended_host_memory"] is not None:
        print(
            f"Recommended: {format_size(report['recommended_host_memory'])}; "
            f"all that this machine has to spare is at most {1 / ENOUGH - 1:.0%} faster."
        )
    for note in report["notes"]:
        print(f"Note: {note}.")


def _copying(report: dict[str, Any]) -> str:
    """What goes over the bus, if there is one."""
    if report["bus_bytes_per_second"] is None:
        return ""
    rate = report["bus_bytes_per_second"] / 1e9
    return f"{format_size(report['bytes_copied_per_token'])} copied to the device per token, at {rate:.1f} GB/s.\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the curve's table."""
    gained = row["tokens_per_second_per_gib"]
    return (
        format_size(row["host_memory"]),
        f"{row['tokens_per_second']:.2f}",
        "" if gained is None else f"{gained:+.2f}",
        f"{row['time_to_first_token_s']:.2f}",
        format_size(row["flash_bytes_per_token"]),
        f"{row['hit_ratio']:.0%}",
        row["limited_by"],
    )


def _where(placement: Placement, here: str, below: str) -> list[tuple[str, object, str, str, str]]:
    """Rows of the table of what is ``here`` and what comes from ``below``; what the model does not have is left
    out."""
    rows = [
        ("small weights", len(placement.resident), placement.resident_bytes, placement.resident_bytes, here),
        ("layers, kept", len(placement.pinned), placement.pinned_bytes, placement.pinned_bytes, here),
        ("layers, streamed", len(placement.streamed), placement.streamed_bytes, placement.stream_region_bytes, below),
        ("embeddings, by row", len(placement.by_row), None, placement.row_cache_bytes, "flash"),
        (
            "experts",
            placement.expert_count,
            placement.expert_total_bytes,
            placement.expert_region_bytes,
            f"{below}, cached",
        ),
    ]
    return [
        (name, count, "" if total is None else format_size(total), format_size(held), where)
        for name, count, total, held, where in rows
        if count
    ]
