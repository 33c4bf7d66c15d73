"""Statistics by component: every one has a flat name, and reports have them all."""

import inspect
import itertools
import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from penstock.runtime.engine import stats as module
from penstock.runtime.engine.stats import DeviceStats, HostStats, KVStats, PrefixStats, Stats, WeightStats
from penstock.tiering.policy.prefetch.predictor_choice import PredictorRecord

COMPONENTS = {"weights": WeightStats, "host": HostStats, "device": DeviceStats, "kv": KVStats, "prefix": PrefixStats}

UNNAMED = {("prefix", "prompts"), ("prefix", "declined")}
"""Statistics of a component that have no flat name: they are only there."""


def numbered() -> Stats:
    """Statistics of which no two have the same value."""
    count = itertools.count(1)
    special: dict[str, Any] = {
        "drive_bytes": (11, 12),
        "products_by_planes": {1: 5},
        "eviction": "lru",
        "predictor": "router",
        "predictors": {"router": PredictorRecord(guessed=2.0)},
        "unbounded_problem": "too much",
        "problem": "no room",
    }
    made = {
        name: kind(**{field.name: special.get(field.name, next(count)) for field in fields(kind)})
        for name, kind in COMPONENTS.items()
    }
    return Stats(tokens=next(count), forwards=next(count), **made)


def test_every_statistic_of_a_component_has_a_flat_name() -> None:
    stats = numbered()
    flat = [value for name, value in stats.report().items() if name != "predictors"]
    for component, kind in COMPONENTS.items():
        for field in fields(kind):
            if (component, field.name) not in UNNAMED and field.name != "predictors":
                assert flat.count(getattr(getattr(stats, component), field.name)) == 1, (component, field.name)


def test_flat_names_are_those_of_before() -> None:
    stats = numbered()
    assert stats.flash_bytes_read == stats.weights.flash_bytes_read
    assert stats.host_budget == stats.host.budget
    assert stats.bytes_copied == stats.device.bytes_copied
    assert stats.kv_stall_seconds == stats.kv.stall_seconds
    assert stats.prefix_tokens_restored == stats.prefix.restored
    with pytest.raises(FrozenInstanceError):
        stats.tokens = 0  # type: ignore[misc]


def test_a_report_is_json_with_times_in_seconds() -> None:
    stats = numbered()
    report = stats.report()
    assert json.loads(json.dumps(report))["predictors"]["router"]["guessed"] == 2.0
    assert (report["stall_s"], report["kv_stall_s"]) == (stats.stall_seconds, stats.kv_stall_seconds)
    assert (report["copy_s"], report["flash_read_s"]) == (stats.copy_seconds, stats.flash_read_seconds)
    assert not [name for name in report if name.endswith("_seconds")]


def test_the_same_by_part() -> None:
    stats = numbered()
    parts = json.loads(json.dumps(stats.parts()))
    assert parts.keys() == {"run", *COMPONENTS}
    assert parts["run"] == {"tokens": stats.tokens, "forwards": stats.forwards}
    for component, kind in COMPONENTS.items():
        assert len(parts[component]) == len(fields(kind))
    assert (parts["kv"]["stall_s"], parts["weights"]["flash_read_s"]) == (
        stats.kv_stall_seconds,
        stats.flash_read_seconds,
    )


def test_people_read_a_few_lines() -> None:
    stats = numbered()
    lines = str(stats).splitlines()
    assert lines[0] == f"{stats.tokens} tokens in {stats.forwards} forwards"
    assert len(lines) == 6
    alone = replace(stats, device=DeviceStats(), kv=KVStats(), prefix=PrefixStats())
    assert str(alone).splitlines() == lines[:3]
    assert "keys and values: 1.00 KiB, beside" in str(replace(alone, kv=KVStats(unbounded_bytes=1024)))


def test_the_speed_of_a_drive_that_was_never_busy_is_none() -> None:
    stats = numbered()
    assert stats.drive_bytes_per_second == stats.flash_bytes_read / stats.flash_read_seconds
    idle = replace(stats, weights=replace(stats.weights, flash_read_seconds=0.0))
    assert idle.drive_bytes_per_second == 0.0


def test_every_statistic_is_explained() -> None:
    """A text in quotes follows each field."""
    for kind in COMPONENTS.values():
        lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
        for field in fields(kind):
            at = next(number for number, line in enumerate(lines) if line.startswith(f"{field.name}: "))
            assert lines[at + 1].startswith('"""'), f"{kind.__name__}.{field.name} of {module.__name__}"
