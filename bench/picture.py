"""Draws some milliseconds of a trace: what each layer computed, where it waited, and which reads were in flight.

    python bench/picture.py run.json picture.png [--start MS] [--length MS]

Without a window it shows the forward in the middle of the trace, and a little of its neighbours. The ending of the
picture's name chooses the format. Needs ``pip install 'penstock[bench]'``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Patch

Event = dict[str, Any]

SHADES = ("#4878a8", "#7fa6cc")
"""Colours of layers in turn, so that neighbours can be told apart."""
EXPERTS, STALL, COPY = "#9bbf85", "#d1495b", "#c9a227"
READS = {"demand": "#e07b39", "prefetch": "#3a9188", "guess": "#8e6bb0"}
LABEL_SHARE = 0.012
"""Share of the picture's width from which on a bar has room for its number."""


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--start", type=float, help="milliseconds after the start of the trace")
    parser.add_argument("--length", type=float, help="milliseconds")
    options = parser.parse_args()
    events = json.loads(options.trace.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    start, length = window(spans, options.start, options.length)
    seen = [span for span in spans if span["ts"] < (start + length) * 1e3 and span["ts"] + span["dur"] > start * 1e3]
    if not seen:
        raise SystemExit(f"nothing happened in the {length:g} ms after {start:g} ms")
    draw(seen, names(events), start, length, options.picture)


def window(spans: Sequence[Event], start: float | None, length: float | None) -> tuple[float, float]:
    """Choose the beginning and the length of the picture, in milliseconds."""
    forwards = [span for span in spans if span["cat"] == "forward"]
    if start is None:
        if not forwards:
            raise SystemExit("the trace has no forward; give --start and --length")
        middle = forwards[len(forwards) // 2]
        whole = middle["dur"] / 1e3 * 1.1 if length is None else length
        return max(0.0, middle["ts"] / 1e3 - whole * 0.05), whole
    return start, 100.0 if length is None else length


def names(events: Sequence[Event]) -> dict[tuple[int, int], str]:
    """The name of each row, by group and row."""
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}


def draw(spans: Sequence[Event], called: dict[tuple[int, int], str], start: float, length: float, path: Path) -> None:
    """Draw ``spans`` into ``path``."""
    rows = rows_of(spans)
    figure, axes = pyplot.subplots(figsize=(11, 0.9 + 0.32 * len(rows)), layout="constrained")
    labels = []
    for height, (key, row) in enumerate(rows.items()):
        labels.append(title(key, called))
        for number, span in enumerate(row):
            bar(axes, span, height, colour(span, number), length)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(start, start + length)
    axes.set_xlabel("milliseconds since the trace began")
    axes.spines[["top", "right"]].set_visible(False)
    shown = {span["args"]["kind"] for span in spans if span["cat"] == "read"}
    legend = {"layer": SHADES[0], "experts in it": EXPERTS, "stall": STALL}
    legend |= {"copy to the device": COPY} if any(span["cat"] == "copy" for span in spans) else {}
    legend |= {f"read: {kind}": shade for kind, shade in READS.items() if kind in shown}
    patches = [Patch(color=shade, label=name) for name, shade in legend.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def rows_of(spans: Sequence[Event]) -> dict[tuple[int, int, str], list[Event]]:
    """Sort the bars by group, row and kind, from the top down."""
    order = ("layer", "experts", "stall", "copy", "read")
    rows: dict[tuple[int, int, str], list[Event]] = {}
    for span in sorted(spans, key=lambda span: (span["pid"], span["tid"], span["ts"])):
        if span["cat"] != "forward":
            rows.setdefault((span["pid"], span["tid"], part(span)), []).append(span)
    return dict(sorted(rows.items(), key=lambda item: (*item[0][:2], order.index(item[0][2]))))


def part(span: Event) -> str:
    """The kind of a bar: "experts", or its category."""
    return "experts" if span["name"].endswith(".experts") else span["cat"]


def title(key: tuple[int, int, str], called: dict[tuple[int, int], str]) -> str:
    """The label of a row."""
    group, row, kind = key
    name = called.get((group, row), str(row))
    return {"read": name, "copy": name, "layer": f"{name}: layers"}.get(kind, kind)


def colour(span: Event, number: int) -> str:
    """The colour of a bar."""
    if span["cat"] == "read":
        return READS[span["args"]["kind"]]
    return {"experts": EXPERTS, "stall": STALL, "copy": COPY}.get(part(span), SHADES[number % 2])


def bar(axes: Axes, span: Event, height: int, shade: str, length: float) -> None:
    """Draw one bar, with the number of its layer if there is room."""
    begin, duration = span["ts"] / 1e3, span["dur"] / 1e3
    axes.barh(height, duration, left=begin, height=0.8, color=shade, linewidth=0.3, edgecolor="white")
    numbers = [piece for piece in span["name"].split(".") if piece.isdigit()]
    if span["cat"] in ("layer", "copy", "read") and numbers and duration > LABEL_SHARE * length:
        middle = begin + duration / 2
        axes.text(middle, height, numbers[0], ha="center", va="center", fontsize=7, color="white", clip_on=True)


if __name__ == "__main__":
    main()
