"""The last requests of a model."""

from penstock.runtime.server.answers.clock import Clock
from penstock.runtime.server.answers.journal import MOST, Entry, Journal


def test_a_request_goes_through_its_states():
    clock = Clock(asked=100.0)
    entry = Entry(clock, prompt_tokens=7)
    journal = Journal()
    journal.add(entry)
    found = entry.report(102.0)
    assert (found["number"], found["state"], found["age_s"], found["first_token_s"]) == (1, "waiting", 2.0, None)
    clock.first, clock.last, clock.tokens, entry.cached = 101.5, 103.5, 5, 3
    found = entry.report(104.0)
    assert (found["state"], found["first_token_s"], found["tokens_per_second"]) == ("answering", 1.5, 2.0)
    assert (found["prompt_tokens"], found["cached_tokens"], found["tokens"]) == (7, 3, 5)
    entry.ending = "stop"
    assert entry.report(104.0)["state"] == "stop"


def test_the_newest_are_remembered_and_come_first():
    journal = Journal()
    for length in range(MOST + 5):
        journal.add(Entry(Clock(), length))
    assert [each["number"] for each in journal.report()] == [*range(MOST + 5, 5, -1)]
