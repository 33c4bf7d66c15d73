"""Draws how often a cache of experts hits against its size, from the report on a routing trace. Needs matplotlib."""

import io
from pathlib import Path
from typing import Any

from ...tiering.errors import TraceError
from .suitability import KNEE_SEGMENT

_SHADES = ("#c6d8e8", "#9dbdd9", "#4878a8", "#2f5a84", "#16324d")
"""Of segment lengths, the longest the darkest."""
_POLICIES = {
    "lru": ("LRU", "o", "#e07b39"),
    "lfu": ("LFU, decayed", "s", "#3a9188"),
    "auto": ("auto", "D", "#8e6bb0"),
}


def check_plot(path: Path) -> None:
    """Raise TraceError unless a picture could be drawn of the kind that the ending of ``path`` names."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise TraceError("a plot needs matplotlib: pip install 'penstock[plot]', or leave out --plot") from error
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise TraceError(f"{path.name} names no kind of picture; let it end in .svg, .png or .pdf")


def draw(report: dict[str, Any], kind: str) -> bytes:
    """The picture of ``report`` in the format ``kind``, "svg" or the like."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    cache, layers = report["cache"], report["by_layer"]
    shares = [each["share"] for each in cache]
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="experts at random")
    segments = list(cache[0]["segment_cache"])
    for segment, shade in zip(segments, _SHADES[-len(segments) :] if segments else (), strict=True):
        curve = [0.0, *(each["segment_cache"][segment] for each in cache)]
        axes.plot([0, *shares], curve, color=shade, label=f"best for each {segment} tokens (SCH)")
    if KNEE_SEGMENT in segments:
        each_layer = [[layer["segment_cache"][share][KNEE_SEGMENT] for layer in layers] for share in shares]
        low, high = ([0.0, *map(bound, each_layer)] for bound in (min, max))
        axes.fill_between(
            [0, *shares],
            low,
            high,
            color="#4878a8",
            alpha=0.15,
            linewidth=0,
            label=f"each {KNEE_SEGMENT} tokens, single layers",
        )
    for name, (label, marker, colour) in _POLICIES.items():
        points = [(each["share"], each[name]) for each in cache if name in each]
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, label=label)
    if report["knee"]:
        axes.axvline(report["knee"]["share"], color="#d1495b", linewidth=0.8, linestyle="--", label="knee")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="experts in the cache", ylabel="uses that find their expert there")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(_title(report), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120)
    return buffer.getvalue()


def _title(report: dict[str, Any]) -> str:
    return (
        f"{report['model_type']}, {report['layers']} layers, {report['experts_per_token']} of {report['experts']} "
        f"experts per token, {report['tokens']} tokens of {report['text']}"
    )
