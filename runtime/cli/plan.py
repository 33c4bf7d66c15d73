"""``penstock plan``: whether a model fits, what goes where, its speed, and what more memory would buy."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ...tiering.policy.measured import in_words_ago
from ...tiering.policy.placement.budgets import ENOUGH
from ...tiering.units import format_size
from .console import importing, print_json, waiting
from .options import Settings, SourceOptions
from .tables import print_table

if TYPE_CHECKING:
    from ...tiering.planner.arrangement import Arrangement
    from ...tiering.policy.placement.placement import Placement
    from ..planning.report import BudgetForecast, ExactPlan, KvPlan, Plan, RestsOn


def command(
    source: SourceOptions,
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
    with importing():
        from ..planning.plan import plan
        from ..routing.routes import Routes

    routes = None if profile is None else Routes.load(profile)
    with waiting("measuring and simulating"):
        found = plan(
            source.model,
            config,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            prompt_tokens=prompt_tokens,
            context=context,
            routes=routes,
        )
    if settings.json:
        print_json(found.to_dict())
    elif found.minimum_host_memory is None:
        print(f"Does not fit: {found.notes[0]}.")
    else:
        _print(found)


def _print(found: "Plan") -> None:
    verdict = "fits" if found.fits else "does not fit"
    print(
        f"{format_size(found.model_bytes)} of weights, {format_size(found.host_memory or 0)} of host memory: "
        f"{verdict}. The least that would do: {format_size(found.minimum_host_memory or 0)}."
    )
    arrangement = found.arrangement
    if arrangement is not None and arrangement.device is not None:
        columns = ["what", "blocks", "bytes", "device memory", "where"]
        print_table("", columns, _where(arrangement.device, "device", "host memory"))
    if found.kv is not None and found.kv.total is not None:
        _print_kv(found.kv)
    if arrangement is not None:
        _print_forecast(found, arrangement)
    if found.exact is not None:
        print(_exact(found.exact))
    columns = ["host memory", "tokens/s", "per GiB", "first, s", "from flash", "hits", "limited by"]
    print_table("", columns, [_cells(row) for row in found.curve])
    if found.recommended_host_memory is not None:
        print(
            f"Recommended: {format_size(found.recommended_host_memory)}; "
            f"all that this machine has to spare is at most {1 / ENOUGH - 1:.0%} faster."
        )
    for note in found.notes:
        print(f"Note: {note}.")


def _print_kv(kv: "KvPlan") -> None:
    where = f"{format_size(kv.flash or 0)} of it on flash, read for each token"
    if not kv.host_memory:
        where = "left to transformers, in memory beside host memory; see [kv] host"
    print(
        f"KV of {kv.context} tokens: {format_size(kv.total or 0)} ({format_size(kv.per_token or 0)} a token), {where}."
    )


def _print_forecast(found: "Plan", arrangement: "Arrangement") -> None:
    """Where everything goes in host memory, and how fast that is."""
    columns = ["what", "blocks", "bytes", "host memory", "where"]
    print_table("", columns, _where(arrangement.host, "memory", "flash"))
    forecast, speeds = found.forecast, found.speeds
    assert forecast is not None
    assert speeds is not None
    assert found.rests_on is not None
    print(
        f"About {forecast.tokens_per_second:.2f} tokens/s ({found.tokens_per_second_from:.2f} to "
        f"{found.tokens_per_second_to:.2f}), limited by {forecast.limited_by}; "
        f"{format_size(forecast.flash_bytes_per_token)} from flash and "
        f"{format_size(speeds.memory_bytes_per_token)} from memory per token, {forecast.hit_ratio:.0%} hits."
    )
    if speeds.bus_bytes_per_second is not None:
        copied = format_size(forecast.bytes_copied_per_token)
        print(f"{copied} copied to the device per token, at {speeds.bus_bytes_per_second / 1e9:.1f} GB/s.")
    print(
        f"First token of a prompt of {found.prompt_tokens} after about {forecast.time_to_first_token_s:.2f} s.\n"
        f"Measured: flash {speeds.flash_bytes_per_second / 1e9:.2f} GB/s, "
        f"memory {speeds.memory_bytes_per_second / 1e9:.1f} GB/s.\n"
        f"{_rests_on(found.rests_on)}\n"
        f"When the machine runs short of memory, down to {format_size(arrangement.floor)} of host memory."
    )


def _exact(exact: "ExactPlan") -> str:
    """Both exact formats, and which of them is taken."""
    speeds = [
        f"{name} {'does not fit' if speed is None else f'{speed:.2f} tokens/s'}"
        for name, speed in exact.tokens_per_second.items()
    ]
    both = f"Every bit is kept by {' and '.join(speeds)}. " if speeds else ""
    text = f"{both}Format auto takes {exact.auto}: it {exact.why}."
    if exact.packed is None or exact.packed == exact.auto:
        return text
    return f"{text} The bundle that is there has {exact.packed}, and is used; --weights-format {exact.auto} packs anew."


def _rests_on(found: "RestsOn") -> str:
    """When and how well everything was measured."""
    drives = "; ".join(f"the drive was {each.in_words(time.time())}" for each in dict.fromkeys(found.drives))
    text = f"Computing was {found.computing.in_words(time.time())}; {drives}."
    if found.latest_run is None:
        return f"{text} No run of this model has taught anything yet."
    runs = "One run" if found.runs == 1 else f"{found.runs} runs"
    return f"{text} {runs} of this model corrected that, the latest {in_words_ago(time.time() - found.latest_run)}."


def _cells(row: "BudgetForecast") -> tuple[str, ...]:
    """A row of the curve's table."""
    found, gained = row.forecast, row.tokens_per_second_per_gib
    return (
        format_size(row.host_memory),
        f"{found.tokens_per_second:.2f}",
        "" if gained is None else f"{gained:+.2f}",
        f"{found.time_to_first_token_s:.2f}",
        format_size(found.flash_bytes_per_token),
        f"{found.hit_ratio:.0%}",
        found.limited_by,
    )


def _where(placement: "Placement", here: str, below: str) -> list[tuple[str, object, str, str, str]]:
    """Rows of the table of the weights that lie ``here`` or come from ``below``. Kinds that the model does not have are
    left out."""
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
