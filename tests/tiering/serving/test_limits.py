"""What limits a model that is served."""

from dataclasses import replace

import pytest

from penstock.tiering.serving.limits import Moment, find_limit

BEFORE = Moment(time=10, stalled=3, kv_stalled=1, reading=5, running=2, rows=4, memory=100, budget=100)
NOW = replace(BEFORE, time=12)


@pytest.mark.parametrize(
    ("before", "now", "what", "why"),
    [
        ({"running": 0}, {"running": 0}, "idle", "no request"),
        ({}, {"running": 0}, "compute", "100%"),
        ({}, {"stalled": 3.2}, "compute", "90%"),
        (
            {},
            {"stalled": 4.0, "reading": 6.5},
            "drive",
            "50% of the time goes to waiting for weights; the drive is busy for 75%",
        ),
        ({}, {"stalled": 9.0, "reading": 9.0}, "drive", "100%"),
        ({}, {"stalled": 4.0, "memory": 80}, "memory", "other programs"),
        ({}, {"kv_stalled": 2.0}, "memory", "50%"),
        ({}, {"waiting": 3}, "memory", "requests wait for room"),
        ({}, {"waiting": 3, "running": 4}, "compute", "100%"),
        ({"running": 0}, {"waiting": 1, "running": 0}, "compute", "100%"),
    ],
)
def test_what_limits(before: dict, now: dict, what: str, why: str):
    found = find_limit(replace(BEFORE, **before), replace(NOW, **now))
    assert found.what == what
    assert why in found.why


def test_no_time_between_two_looks():
    assert find_limit(BEFORE, BEFORE).what == "compute"
