"""Prefixes, as decided: names, headers, what is found and what goes first, admission, reading against computing."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import PrefixDamaged, PrefixVersionError
from penstock.tiering.prefix import header as headers
from penstock.tiering.prefix.admission import Seen
from penstock.tiering.prefix.breakeven import Speeds, dump, parse, worth_reading
from penstock.tiering.prefix.chain import chain_of, root_of
from penstock.tiering.prefix.header import lay_out
from penstock.tiering.prefix.roles import Role, StoredTensor, layout_of
from penstock.tiering.prefix.tree import Match, Record, Span, longest, make_room, orphans, record_of, stale
from penstock.tiering.units import PAGE
from tests.support.prefixes import BLOCK, PARTS, ROOT, STATE, chain

TOKENS = st.lists(st.integers(0, 3), max_size=24)


@given(TOKENS, TOKENS)
def test_chains_agree_exactly_as_far_as_the_tokens_do(one, other):
    a, b = chain_of(ROOT, one, BLOCK), chain_of(ROOT, other, BLOCK)
    pairs = list(zip(one, other, strict=False))
    same = next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))
    for index, (x, y) in enumerate(zip(a.hashes, b.hashes, strict=False)):
        assert (x == y) == ((index + 1) * BLOCK <= same)
    assert len(a.hashes) == len(one) // BLOCK


@pytest.mark.parametrize(
    ("identity", "salt"), [({"weights": "v"}, ""), ({"weights": "w", "rope": 1}, ""), ({"weights": "w"}, "me")]
)
def test_another_model_or_namespace_has_no_hash_in_common(identity, salt):
    other = chain(1, 2, root=root_of(identity, salt))
    assert not set(other.hashes) & set(chain(1, 2).hashes)


# --- headers ---


def whole_header(*, state: bool):
    made = lay_out(chain(1, 2, 3), 1, label="m", parts=PARTS, state_parts=STATE if state else (), explicit=True)
    return made.with_checksums([f"{n:016x}" for n in range(len(made.extents))])


@pytest.mark.parametrize("state", [False, True])
def test_a_header_reads_back(state):
    header = whole_header(state=state)
    raw = headers.dump(header)
    assert headers.parse(raw, "f") == header
    assert len(raw) == header.start == headers.length_of(raw[:PAGE], "f")
    assert header.tokens == (2,) * BLOCK + (3,) * BLOCK
    assert header.end == header.start + 2 * 3 * PAGE + PAGE * state


@given(st.integers(0, 8 * PAGE - 1))
def test_no_bit_of_a_header_may_change(bit):
    raw = bytearray(headers.dump(whole_header(state=True)))
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    with pytest.raises((PrefixDamaged, PrefixVersionError)):
        headers.parse(bytes(raw), "f")


def test_a_newer_version_is_named(monkeypatch):
    monkeypatch.setattr(headers, "VERSION", 3)
    raw = headers.dump(whole_header(state=False))
    monkeypatch.undo()
    with pytest.raises(PrefixVersionError, match="version 3"):
        headers.parse(raw, "f")


def reencoded(change, *, state: bool = True) -> bytes:
    """A header whose JSON ``change`` has changed, under a hash that is right."""
    raw = headers.dump(whole_header(state=state))
    magic, version, _, _, size = headers._PREAMBLE.unpack_from(raw)
    at = headers._PREAMBLE.size
    document = json.loads(raw[at : at + size])
    document = change(document) or document
    body = json.dumps(document, separators=(",", ":")).encode()
    rest = raw[at + size :].rstrip(b"\0")
    start = -(-(at + len(body) + len(rest)) // PAGE) * PAGE
    whole = (body + rest).ljust(start - at, b"\0")
    blank = headers._PREAMBLE.pack(magic, version, start, bytes(32), len(body))
    return headers._PREAMBLE.pack(magic, version, start, hashlib.sha256(blank + whole).digest(), len(body)) + whole


def put(*path, value):
    """Sets the place ``path`` of a document to ``value``."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def swap_kinds(document):
    keys, values = document["parts"]
    keys["kind"], values["kind"] = values["kind"], keys["kind"]


def test_a_header_that_is_encoded_again_is_the_same():
    assert headers.parse(reencoded(lambda document: None), "f") == whole_header(state=True)


@pytest.mark.parametrize(
    "change",
    [
        put("parts", 0, "shape", value=[2, BLOCK, 1 << 40]),
        put("parts", 0, "shape", value=[2, BLOCK, -625]),
        put("parts", 0, "shape", value=[1 << 31, BLOCK, 1 << 31]),
        put("parts", 0, "shape", value=[-2, BLOCK, -625]),
        put("parts", 0, "shape", value=[2, BLOCK]),
        put("parts", 0, "shape", value=[2, BLOCK + 1, 500]),
        put("parts", 0, "shape", value=[2.0, BLOCK, 625]),
        put("parts", 0, "shape", value="625"),
        put("parts", 0, "shape", value=[True, BLOCK, 1250]),
        put("parts", 0, "dtype", value="complex128"),
        put("parts", 0, "dtype", value="__class__"),
        put("parts", 0, "dtype", value=None),
        put("parts", 0, "kind", value="conv"),
        put("parts", 0, "layer", value=-1),
        put("parts", 0, "layer", value=True),
        put("parts", 0, "index", value=1),
        put("parts", 1, "layer", value=1),
        put("parts", value={}),
        put("state_parts", 0, "shape", value=[2, 300]),
        put("state_parts", 0, "layer", value="1"),
        put("state_parts", value=[]),
        put("blocks", value=300),
        put("blocks", value=-2),
        put("blocks", value=1 << 40),
        put("block", value=0),
        put("block", value=1 << 70),
        put("first", value=-1),
        put("first", value=0),
        put("first", value=1 << 40),
        put("root", value="00"),
        put("parent", value="z" * 64),
        put("label", value="../../etc"),
        put("label", value="\x1b[2J"),
        put("label", value="\ud800"),
        put("explicit", value=1),
        put("more", value=1),
        swap_kinds,
        lambda document: document["parts"].reverse(),
        lambda document: document["parts"].extend(document["parts"]),
        lambda document: document.pop("label"),
        lambda document: [document],
    ],
)
def test_what_no_model_writes_is_damage_under_a_right_hash_too(change):
    with pytest.raises(PrefixDamaged, match="f is damaged") as caught:
        headers.parse(reencoded(change), "f")
    assert "\n" not in str(caught.value)


def test_a_state_has_no_more_tokens_than_there_are():
    window = (
        StoredTensor(Role(1, "keys"), "float32", (1, 2, 13, 8)),
        StoredTensor(Role(1, "values"), "float32", (1, 2, 13, 8)),
    )
    made = lay_out(chain(1, 2, 3), 1, label="m", parts=PARTS, state_parts=window)
    with pytest.raises(PrefixDamaged, match="of 12 tokens"):
        headers.parse(headers.dump(made), "f")


def test_a_file_of_the_version_before_counts_as_damaged(monkeypatch):
    monkeypatch.setattr(headers, "VERSION", 1)
    raw = headers.dump(whole_header(state=False))
    monkeypatch.undo()
    with pytest.raises(PrefixDamaged, match="version 1"):
        headers.parse(raw, "f")


def test_a_layout_is_that_of_all_prompts_of_a_model():
    longer = tuple(replace(part, shape=(part.shape[0], 2 * BLOCK, part.shape[2])) for part in PARTS)
    assert layout_of(PARTS, STATE) == layout_of(longer, STATE)
    others = [
        (PARTS[::-1], STATE),
        (PARTS[:1], STATE),
        (PARTS, ()),
        ((replace(PARTS[0], dtype="float8_e4m3fn"), PARTS[1]), STATE),
        ((replace(PARTS[0], role=Role(2, "keys")), PARTS[1]), STATE),
        ((replace(PARTS[0], shape=(4, BLOCK, 625)), PARTS[1]), STATE),
        (PARTS, (replace(STATE[0], shape=(1, 301)),)),
        ((), (*PARTS, *STATE)),
    ]
    assert len({layout_of(*each) for each in [(PARTS, STATE), *others]}) == len(others) + 1


# --- what is found, what goes ---


def record(name: str, *tokens: int, first: int = 0, used: int = 0, state: bool = False) -> Record:
    wanted = chain(*tokens)
    header = lay_out(wanted, first, label="m", parts=PARTS, state_parts=STATE if state else ())
    return record_of(name, header, wanted.hashes[first:]).as_of(header.end, used)


def test_the_longest_prefix_goes_over_files():
    records = [record("a", 1, 2), record("b", 1, 2, 3, 4, first=2), record("c", 1, 5, first=1)]
    assert longest(records, chain(1, 2, 3, 9).hashes, with_state=False) == Match(3, (Span("a", 0, 2), Span("b", 0, 1)))
    assert longest(records, chain(1, 5, 3).hashes, with_state=False).spans == (Span("a", 0, 1), Span("c", 0, 1))
    assert longest(records, chain(1, 2, 3).hashes, with_state=False, without={"a"}).blocks == 0


def test_with_a_state_only_its_own_length_counts():
    records = [record("a", 1, 2, 3, state=True), record("s", 1, first=1, state=True)]
    assert longest(records, chain(1, 2, 3, 4).hashes, with_state=True).state == "a"
    shorter = longest(records, chain(1, 2, 9).hashes, with_state=True)
    assert (shorter.blocks, shorter.state) == (1, "s")
    assert longest(records[:1], chain(1, 2).hashes, with_state=True).blocks == 0


def test_a_shortened_file_has_what_it_still_holds():
    whole = record("a", 1, 2, 3, state=True)
    cut = whole.as_of(whole.ends[1] + 1, 0)
    assert (len(cut.hashes), cut.state, cut.tokens) == (2, None, 2 * BLOCK)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=8), st.data()
)
def test_eviction_keeps_what_others_need_and_frees_enough(made, data):
    records: dict[str, Record] = {}
    paths: list[tuple[int, ...]] = [()]
    for number, (used, token, more, state) in enumerate(made):
        path = data.draw(st.sampled_from(paths))
        tokens = (*path, *[token * 100 + number] * more)
        paths += [tokens[:n] for n in range(len(path) + 1, len(tokens) + 1)]
        records[str(number)] = record(str(number), *tokens, first=len(path), used=used, state=state)
    total = sum(r.length for r in records.values())
    wanted = data.draw(st.integers(0, total))
    cuts = {cut.name: cut.length for cut in make_room(records.values(), wanted)}
    left = [r.as_of(cuts.get(r.name, r.length), r.used) for r in records.values() if cuts.get(r.name, r.length)]
    assert not orphans(left)
    assert total - sum(r.length for r in left) >= wanted
    assert all(r.hashes or r.state for r in left)


def test_the_end_of_the_oldest_prefix_goes_first():
    old, new = record("old", 1, 2, 3, used=1), record("new", 4, 5, used=2)
    block = old.ends[1] - old.ends[0]
    assert [(c.name, c.length) for c in make_room([new, old], block)] == [("old", old.ends[1])]
    assert [(c.name, c.length) for c in make_room([new, old], block + 1)] == [("old", old.ends[0])]
    assert [(c.name, c.length) for c in make_room([new, old], old.length + 1)] == [("old", 0), ("new", new.ends[0])]


def test_what_is_gone_on_from_stays():
    old, new = record("old", 1, 2, 3, used=1), record("new", 1, 2, 4, first=2, used=9)
    assert [(c.name, c.length) for c in make_room([old, new], PAGE)] == [("old", old.ends[1])]
    assert make_room([old], old.length, spared=[old.hashes[-1]]) == []


def test_stale_prefixes_go_unless_younger_ones_follow():
    records = [record("a", 1, used=1), record("b", 1, 2, first=1, used=5), record("c", 1, 3, first=1, used=1)]
    assert [r.name for r in stale(records, 3)] == ["c"]
    assert {r.name for r in stale(records, 9)} == {"a", "b", "c"}


def test_files_that_nobody_can_reach():
    assert [r.name for r in orphans([record("b", 1, 2, 3, first=2), record("a", 1)])] == ["b"]


# --- admission ---


def test_the_second_time_counts():
    seen = Seen(Seen(b"", 99).entries(chain(1, 2, 3).hashes), 99)
    assert seen.leading(chain(1, 2, 9).hashes) == 2
    assert seen.leading(chain(9, 2, 3).hashes) == 0
    assert seen.entries(chain(1, 2).hashes) == b""


def test_the_table_is_bounded_and_survives_a_torn_end():
    hashes = chain(*range(20)).hashes
    raw = Seen(b"", 8).entries(hashes)
    seen = Seen(raw + b"torn", 8)
    assert seen.crowded
    assert len(seen.dump()) == 8 * 16
    assert seen.leading(hashes[12:]) == 8
    assert seen.leading(hashes[11:]) == 0


# --- reading or computing ---


def test_the_faster_way_is_taken():
    speeds = Speeds(read=1e9, prompts=((1000, 1.0),))
    assert worth_reading(speeds, bytes_=10**8, tokens=1000, saved=False)
    assert not worth_reading(speeds, bytes_=2 * 10**9, tokens=1000, saved=True)


@pytest.mark.parametrize("known", [Speeds(), Speeds(read=1e9), Speeds(prompts=((1, 1.0),))])
def test_unmeasured_only_what_was_saved_is_read(known):
    assert worth_reading(known, bytes_=1, tokens=1000, saved=True)
    assert not worth_reading(known, bytes_=1, tokens=1000, saved=False)


@pytest.mark.parametrize("before", [True, False])
def test_near_break_even_the_last_decision_stands(before):
    speeds = Speeds(read=1e9, prompts=((1000, 1.0),), reading=before)
    for bytes_ in (9 * 10**8, 11 * 10**8):
        assert worth_reading(speeds, bytes_=bytes_, tokens=1000, saved=False) is before


def test_what_every_prompt_takes_is_not_saved():
    """A model that reads its weights for 2 s each prompt, and computes 1000 tokens in one more."""
    speeds = Speeds(prompts=((1000, 3.0), (4000, 6.0)))
    assert speeds.seconds_to_compute(500) == pytest.approx(0.5)
    assert Speeds(prompts=((1000, 3.0),)).seconds_to_compute(500) == pytest.approx(1.5)


def test_speeds_read_back_and_damage_shows():
    speeds = {"r": Speeds().after_read(100, 2.0).after_prompt(7, 0.5)}
    assert parse(dump(speeds)) == speeds
    assert speeds["r"].read == 50
    for wrong in ({"read": -1}, {"prompts": ((0, 1.0),)}, {"reading": 3}, {"reading": 1}, {"prompts": (("7", 0.5),)},
                  {"read": 10**400}, {"read": "1"}, {"prompts": ((1 << 70, 1.0),)}):  # fmt: skip
        with pytest.raises(ValueError):
            parse({"r": dump({"r": replace(Speeds(), **wrong)})["r"]})
