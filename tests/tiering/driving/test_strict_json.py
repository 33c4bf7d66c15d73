"""JSON that others wrote: of the expected kinds, within bounds, all of it, or a ValueError in one short line."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.tiering.driving.strict_json import Fields, items, many, number, parse_json, shorten, text, whole


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"NaN",
        b"[Infinity, -Infinity]",
        b"9" * 5000,
        b'{"a":1,"a":2}',
        b"\xff",
        b"\0",
        b"",
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_no_json_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(raw)


@pytest.mark.parametrize(
    "take",
    [
        lambda fields: fields.whole("flag"),
        lambda fields: fields.whole("text"),
        lambda fields: fields.whole("real"),
        lambda fields: fields.whole("large"),
        lambda fields: fields.whole("negative"),
        lambda fields: fields.whole("one", 2, 3),
        lambda fields: fields.whole("absent"),
        lambda fields: fields.flag("one"),
        lambda fields: fields.text("one"),
        lambda fields: fields.text("null"),
        lambda fields: fields.text("control"),
        lambda fields: fields.text("half"),
        lambda fields: fields.number("flag"),
        lambda fields: fields.number("text"),
        lambda fields: fields.number("huge"),
        lambda fields: fields.many("text", whole),
        lambda fields: fields.many("items", whole, 1),
        lambda fields: fields.many("items", lambda each: text(each, "x")),
        lambda fields: fields.end(),
    ],
)
def test_another_kind_or_size_is_refused(take: Callable[[Fields], object]) -> None:
    value = {"flag": True, "text": "1", "real": 1.0, "large": 1 << 63, "negative": -1, "one": 1, "null": None}
    value |= {"control": "a\x1b[2J", "half": "\ud800", "huge": 10**400, "items": [1, 2]}
    with pytest.raises(ValueError) as caught:
        take(Fields(value))
    assert len(str(caught.value)) < 200


def test_what_is_as_it_should_be_is_taken() -> None:
    fields = Fields(parse_json(b'{"a":1,"b":"x","c":[1,2],"d":false,"e":0.5}'))
    assert fields.whole("a", 1, 1) == 1
    assert fields.text("b", "x|y") == "x"
    assert fields.many("c", whole, 2) == (1, 2)
    assert fields.flag("d") is False
    assert fields.number("e") == 0.5
    fields.end()
    assert items([1, "x"], 2) == [1, "x"]


@pytest.mark.parametrize("value", [[], [1], [1, 2, 3], {"a": 1, "b": 2}, "ab", None])
def test_a_list_has_as_many_items_as_it_should(value: object) -> None:
    with pytest.raises(ValueError, match="a list of 2"):
        items(value, 2)


@example("\x1f" * 50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_only_value_errors_come_of_any_value(value: Any) -> None:
    assert len(shorten(value)) < 100
    takers: list[Callable[[Any], object]] = [whole, number, Fields, lambda v: text(v, "x"), lambda v: many(v, whole)]
    for take in takers:
        with suppress(ValueError):
            take(value)
