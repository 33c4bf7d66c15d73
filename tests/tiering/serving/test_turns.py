"""Several models take turns: nobody waits for ever, and one model has the memory at a time."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.serving.turns import Step, Turns


def test_requests_of_the_model_that_has_the_memory_begin_at_once():
    turns = Turns(patience=10)
    turns.offer(1, 0, now=0)
    assert turns.decide(0) == Step(switch=0)
    turns.begin(0)
    assert turns.decide(0) == Step(start=(1,))
    turns.offer(2, 0, now=1)
    turns.offer(3, 1, now=1)
    assert turns.decide(1) == Step(start=(2,))


def test_who_has_lost_patience_is_not_passed_any_more():
    turns = Turns(patience=10, current=0)
    turns.running[0] = 0
    turns.offer(1, 1, now=0)
    turns.offer(2, 0, now=9)
    assert turns.decide(9).start == (2,)
    turns.offer(3, 0, now=10)
    assert turns.decide(10) == Step()
    turns.end(0)
    assert turns.decide(11) == Step()
    turns.end(2)
    assert turns.decide(12) == Step(switch=1)
    turns.begin(1)
    assert turns.decide(13).start == (1,)


def test_the_memory_goes_on_when_nobody_uses_it():
    turns = Turns(patience=10, current=0)
    turns.offer(1, 1, now=0)
    assert turns.decide(0) == Step(switch=1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=40))
def test_everybody_has_a_turn(arrivals):
    """``arrivals``: model, time after the one before, time that the answer takes."""
    turns, now, patience, ends, begun = Turns(patience=5), 0, 5, {}, {}
    plan, at = [], 0
    for number, (model, later, takes) in enumerate(arrivals):
        at += later
        plan.append((at, number, model, takes))
    takes_of = {number: takes for _, number, _, takes in plan}
    model_of = {number: model for _, number, model, _ in plan}
    switches = 0
    while len(begun) < len(plan) or ends:
        for number in [number for number, end in ends.items() if end <= now]:
            turns.end(number)
            del ends[number]
        for _, number, model, _ in [each for each in plan if each[0] == now]:
            turns.offer(number, model, now)
        while (step := turns.decide(now)) != Step():
            if step.switch is not None:
                assert not ends, "what ran was not waited for"
                turns.begin(step.switch)
                switches += 1
            for number in step.start:
                assert model_of[number] == turns.current
                assert {model_of[other] for other in ends} <= {turns.current}
                begun[number] = now
                ends[number] = now + takes_of[number]
        now += 1
        # A turn is as long as the patience of others and the longest answer; two other models may come before.
        assert all(now - each.since <= 3 * (patience + 6) + 3 for each in turns.waiting)
    assert switches <= len(plan)
