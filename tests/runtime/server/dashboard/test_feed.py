"""What the page is told."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from penstock.runtime.server.dashboard.sampler import level_of
from tests.runtime.server.dashboard.conftest import KEY
from tests.support.engines import engine_of
from tests.support.servers import Served, until


def states(lines: Iterator[str]) -> Iterator[dict]:
    for line in lines:
        if line.startswith("data: ") and "models" in (said := json.loads(line[6:])):
            yield said["models"][0]


@pytest.mark.parametrize(
    ("heat", "most", "level"), [(0, 0, 0), (0.4, 100, 0), (1, 1, 9), (1, 1000, 1), (100, 100, 9), (9, 99, 4)]
)
def test_heat_has_ten_levels(heat: float, most: float, level: int):
    assert level_of(heat, most) == level


def test_all_who_look_on_see_the_same_and_experts_are_counted_meanwhile(experts_server: Served):
    served = experts_server.served
    planner = engine_of(served.model).bridge._planner
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=experts_server.url, headers=headers, timeout=60) as client:
        with client.stream("GET", "/dashboard/events") as one, client.stream("GET", "/dashboard/events") as other:
            first, second = states(one.iter_lines()), states(other.iter_lines())
            next(first)
            next(second)
            assert planner.uses == {}
            client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 3, "logit_bias": {"2": -100}})
            seen = next(state for state in first if any("9" in layer["heat"] for layer in state["experts"]))
            assert {layer["module"] for layer in seen["experts"]} == {block.module for block in planner.uses}
            assert seen in [next(second) for _ in range(20)]
            newest = seen["journal"][0]
            assert (newest["prompt_tokens"], newest["tokens"], newest["state"]) == (2, 3, "length")
            asked = sum(planner.uses.values())
            stats = served.model.penstock.stats()
            assert 0 < asked <= stats.expert_hits + stats.expert_misses
        until(lambda: planner.uses is None)


def test_it_needs_the_key(experts_server: Served):
    assert httpx2.get(f"{experts_server.url}/dashboard/events").status_code == 401
    assert httpx2.get(experts_server.url).status_code == 200
