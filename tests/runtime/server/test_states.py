"""How the server is."""

import httpx2

from tests.support.servers import Served


def test_it_says_that_it_is_well(raw: httpx2.Client):
    assert raw.get("/health").json() == {"status": "ok"}


def test_it_says_what_the_model_can(raw: httpx2.Client):
    [found] = raw.get("/props").json()["models"]
    assert (found["name"], found["context_tokens"], found["vocabulary"]) == ("tiny", 1024, 320)
    assert (found["chat_template"], found["tool_calls"]) == (True, False)


def samples(raw: httpx2.Client) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in raw.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_it_counts(server: Served, raw: httpx2.Client):
    before = samples(raw)
    asked = {"prompt": "ab", "max_tokens": 5, "n": 2, "logit_bias": {"2": -100}}
    assert raw.post("/v1/completions", json=asked).status_code == 200
    after = samples(raw)
    model = '{model="tiny"}'
    assert after[f"penstock_answer_tokens_total{model}"] - before.get(f"penstock_answer_tokens_total{model}", 0) == 10
    assert after[f"penstock_prompt_tokens_total{model}"] - before.get(f"penstock_prompt_tokens_total{model}", 0) == 2
    assert after['penstock_memory_bytes{model="tiny",tier="host"}'] > 0
    assert after['penstock_requests_now{model="tiny",state="running"}'] == 0
