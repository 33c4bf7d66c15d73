"""Notes of any kind, in any order that threads can bring about, become a trace that keeps to the format."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.tracing.chrome import events, labels
from penstock.runtime.tracing.notes import (
    FORWARD,
    Enter,
    Forward,
    KVLanded,
    KVStall,
    KVStarted,
    Leave,
    Note,
    ReadLanded,
    ReadStarted,
    Sample,
    Stall,
    Tokens,
)
from penstock.tiering.events import Part, Purpose, Read, Slot
from penstock.tiering.units import PAGE, BlockId, Extent
from tests.support.traces import Event, check, nanoseconds, spans

BLOCKS = [BlockId("expert", "a.experts", 17), BlockId("expert", "a.experts", 18), BlockId("dense", "a.q_proj")]


def read(number: int, *, blocks: int = 1, purpose: Purpose = Purpose.DEMAND) -> Read:
    made = (Part(b, Extent(0, PAGE * n, PAGE), Slot("experts", 0, PAGE)) for n, b in enumerate(BLOCKS[:blocks]))
    return Read(number, tuple(made), purpose)


def traced(*notes: Note, until: float = 10.0, full: bool = False) -> list[Event]:
    found = list(events(notes, since=0.0, until=until, files=["data"], full=full))
    check(found)
    return found


def times(event: Event) -> tuple[float, float]:
    return event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6


def test_blocks_of_one_module_share_its_name() -> None:
    assert labels(BLOCKS) == "a.experts 17, 18; a.q_proj"


def test_reads_at_the_same_time_lie_on_different_rows() -> None:
    found = traced(
        ReadStarted(0.0, read(0, blocks=2)),
        ReadStarted(1.0, read(1, purpose=Purpose.CERTAIN)),
        ReadLanded(2.0, 0, False),
        ReadStarted(2.0, read(2)),
        ReadLanded(3.0, 1, True),
    )
    rows = {times(span): (span["tid"], span["args"]["kind"]) for span in spans(found, "read")}
    assert rows == {(0.0, 2.0): (1, "demand"), (1.0, 3.0): (2, "prefetch"), (2.0, 10.0): (1, "demand")}
    first, second, third = spans(found, "read")
    assert first["args"]["MB/s"] == round(2 * PAGE / 2e6, 1)
    assert second["args"]["failed"]
    assert third["args"]["unfinished"]
    in_flight = [event["args"] for event in found if event["name"] == "bytes in flight"]
    assert in_flight[1] == {"demand": 2 * PAGE, "prefetch": PAGE, "guess": 0, "refine": 0}
    assert in_flight[-1] == {"demand": PAGE, "prefetch": 0, "guess": 0, "refine": 0}


def test_reads_of_kv_have_rows_of_their_own() -> None:
    found = traced(
        KVLanded(0.5, 7, False),
        Forward(1.0, 1, "main"),
        ReadStarted(1.0, read(0)),
        KVStarted(1.0, 8, 2, 2 * PAGE),
        KVStarted(2.0, 9, 1, PAGE),
        KVStall(3.0, 1, 2.5),
        KVLanded(3.0, 8, False),
        KVStarted(4.0, 10, 1, PAGE),
        KVLanded(5.0, 9, True),
    )
    reads = {(*times(span), span["pid"], span["tid"]): span["args"] for span in spans(found, "KV read")}
    assert reads == {
        (1.0, 3.0, 3, 1): {"pages": 2, "bytes": 2 * PAGE, "MB/s": round(PAGE / 1e6, 1)},
        (2.0, 5.0, 3, 2): {"pages": 1, "bytes": PAGE, "failed": True},
        (4.0, 10.0, 3, 1): {"pages": 1, "bytes": PAGE, "unfinished": True},
    }
    (stall,) = spans(found, "KV stall")
    assert (stall["name"], stall["pid"], times(stall)) == ("stall: KV", 1, (2.5, 3.0))
    assert [span["pid"] for span in spans(found, "read")] == [2]
    assert any(event["name"] == "process_name" and event["args"] == {"name": "KV"} for event in found)


def test_without_kv_in_pages_there_are_no_rows_for_it() -> None:
    assert {event["pid"] for event in traced(Forward(1.0, 1, "main"), ReadStarted(1.0, read(0)))} == {1, 2}


def test_what_was_not_left_ends_with_what_is_around_it() -> None:
    found = traced(
        Leave(0.5, 1, "before the trace"),
        Forward(1.0, 1, "main"),
        Enter(2.0, 1, "layer"),
        Enter(3.0, 1, "interrupted"),
        Stall(4.0, 1, 3.5, BLOCKS[0]),
        Tokens(4.5, 1, 7),
        Leave(5.0, 1, "layer"),
        Forward(6.0, 1, "main"),
        Enter(7.0, 1, "at the end"),
    )
    got = {(span["name"], *times(span)) for span in found if span["ph"] == "X"}
    assert got == {
        (FORWARD, 1.0, 6.0),
        ("layer", 2.0, 5.0),
        ("interrupted", 3.0, 5.0),
        ("stall: a.experts 17", 3.5, 4.0),
        (FORWARD, 6.0, 10.0),
        ("at the end", 7.0, 10.0),
    }
    assert spans(found, "forward")[0]["args"] == {"tokens": 7}


def test_a_full_trace_ends_with_its_last_note() -> None:
    found = traced(Forward(1.0, 1, "main"), Enter(2.0, 1, "layer"), ReadStarted(3.0, read(0)), full=True)
    assert max(nanoseconds(span)[1] for span in found if span["ph"] == "X") == 3 * 10**9


def test_hits_are_counted_from_sample_to_sample() -> None:
    found = traced(Sample(1.0, 10, 5), Sample(2.0, 14, 5), Sample(3.0, 14, 8))
    assert [list(event["args"].values()) for event in found if event["ph"] == "C"] == [[4, 0], [0, 3]]


NAMES = st.sampled_from(["x", "y", FORWARD])
STEPS = st.lists(
    st.tuples(
        st.floats(0, 1e-6), st.integers(1, 3), st.sampled_from(["forward", "enter", "leave", "stall", "read"]), NAMES
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 10**6))
def test_every_trace_keeps_to_the_format(steps: list[tuple[float, int, str, str]], since: int) -> None:
    now, last, notes, flying = since + 0.0, {}, [], 0
    for pause, thread, what, name in steps:
        begun, now = last.get(thread, now), now + pause
        last[thread] = now
        match what:
            case "forward":
                notes.append(Forward(now, thread, "main"))
            case "enter":
                notes.append(Enter(now, thread, name))
            case "leave":
                notes.append(Leave(now, thread, name))
            case "stall":
                notes.append(Stall(now, thread, begun, None))
            case "read":
                notes.append(ReadStarted(now, read(flying)) if name == "x" else ReadLanded(now, flying - 1, False))
                flying += name == "x"
    found = list(events(notes, since=float(since), until=now, files=["data"], full=False))
    check(found)
    assert len(spans(found, "forward")) == sum(isinstance(note, Forward) for note in notes)
    assert len(spans(found, "layer")) == sum(isinstance(note, Enter) for note in notes)
    assert len(spans(found, "read")) == sum(isinstance(note, ReadStarted) for note in notes)
