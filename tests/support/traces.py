"""Reading traces in tests: the rules of the Trace Event Format that viewers rely on, and the spans."""

import json
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def load(path: Path) -> list[Event]:
    """The events of a trace file, which keeps to the format."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["displayTimeUnit"] == "ms"
    check(document["traceEvents"])
    return document["traceEvents"]


def spans(events: Sequence[Event], kind: str) -> list[Event]:
    """The spans of ``kind``: forward, layer, stall or read."""
    return [event for event in events if event.get("cat") == kind]


def nanoseconds(span: Event) -> tuple[int, int]:
    """Begin and end."""
    begin = round(span["ts"] * 1000)
    return begin, begin + round(span["dur"] * 1000)


def check(events: Sequence[Event]) -> None:
    """Fields and types are as documented; spans of one row lie beside or within each other, the outer one first."""
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    named = set()
    for event in events:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert list(event["args"]) in (["name"], ["sort_index"])
            named.add((event["pid"], event["tid"]))
            continue
        assert isinstance(event["ts"], Real)
        assert event["ts"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int) and value >= 0 for value in event["args"].values())
        elif event["ph"] == "X":
            assert event["dur"] >= 0
            rows.setdefault((event["pid"], event["tid"]), []).append(nanoseconds(event))
        else:
            assert event["ph"] == "i"
    assert rows.keys() <= named
    for row in rows.values():
        around: list[int] = []
        for begin, end in sorted(row, key=lambda span: span[0]):  # stable: at the same time, the outer one comes first
            while around and around[-1] <= begin:
                around.pop()
            assert not around or end <= around[-1], "spans of one row overlap"
            around.append(end)
