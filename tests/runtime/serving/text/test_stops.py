"""Stop strings in a text that comes in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.serving.text.stops import StopStrings

SHORT = st.text("ab", max_size=4)


def before_stop(text: str, stops: list[str]) -> str:
    return text[: min((text.find(stop) for stop in stops if stop and stop in text), default=len(text))]


@given(st.lists(SHORT, max_size=12), st.lists(SHORT, max_size=3))
def test_the_text_ends_before_the_first_stop_string_however_it_comes(pieces: list[str], stops: list[str]):
    scan = StopStrings(stops)
    told = ""
    for piece in pieces:
        told += scan.feed(piece)
        if scan.found is not None:
            break
        assert before_stop("".join(pieces), stops).startswith(told)
    assert told + scan.end() == before_stop("".join(pieces), stops)


def test_only_what_may_be_the_beginning_of_a_stop_string_is_held_back():
    scan = StopStrings(["stop"])
    assert [scan.feed(piece) for piece in ("go st", "ay sto", "p!", "more")] == ["go ", "stay ", "", ""]
    assert scan.found == "stop"


def test_of_two_at_the_same_place_the_longer_one_is_found():
    scan = StopStrings(["a", "ab"])
    assert scan.feed("xab") == "x"
    assert scan.found == "ab"
