"""Whether reading is the limit."""

from penstock.tiering.serving.limit import LITTLE, MUCH, ReadingLimit


def rounds(limit: ReadingLimit, count: int, share: float) -> bool:
    for _ in range(count):
        limit.note(2.0, 2.0 * share)
    return limit.exact


def test_answers_are_exact_as_long_as_rounds_wait() -> None:
    limit = ReadingLimit()
    assert rounds(limit, 100, LITTLE + 0.01)
    assert rounds(limit, 1, 0.0), "one round says nothing"
    assert not rounds(limit, 100, 0.0)
    assert not rounds(limit, 100, MUCH - 0.01), "they would be faster, and wait more"
    assert rounds(limit, 100, MUCH + 0.01)


def test_rounds_without_time_do_not_count() -> None:
    limit = ReadingLimit()
    for _ in range(100):
        limit.note(0.0, 0.0)
    assert limit.exact
