"""The KV planner beside a ledger of bytes: whatever happens, in whatever order, what must hold holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from penstock.tiering.errors import BudgetTooSmall, Closed, FlashFull, ReadError
from penstock.tiering.events import Refuse
from penstock.tiering.kv import planner as planner_module
from penstock.tiering.kv.books import FLASH, MEMORY
from penstock.tiering.kv.events import (
    Close,
    FetchPages,
    HoldPages,
    KVAction,
    LetGo,
    Open,
    PagesRead,
    PagesWritten,
    ReadAhead,
    ReadPages,
    Score,
    Seal,
    SetLimit,
    Wake,
    WritePages,
)
from penstock.tiering.kv.pages import InMemory, OnFlash, Page
from penstock.tiering.kv.planner import KVPlanner
from penstock.tiering.units import PAGE, MiB
from tests.support.kv_runs import HAPPENS, random_kv_run, step
from tests.support.kv_world import KVWorld

ROOT = Path(__file__).parents[3]
NUMBER = st.integers(0, 99)


class KVPlannerMachine(RuleBasedStateMachine):
    world: KVWorld

    @initialize(pages=st.sampled_from([16, 24, 40]), flash=st.sampled_from([None, 2 * MiB]), device=st.integers(0, 8))
    def begin(self, pages: int, flash: int | None, device: int) -> None:
        self.world = KVWorld(pages, flash=flash, device=device)

    @rule(what=st.sampled_from([*HAPPENS]), first=NUMBER, count=NUMBER)
    def happens(self, what: str, first: int, count: int) -> None:
        step(self.world, what, first, count)

    @rule(many=st.integers(1, 8), track=NUMBER, size=NUMBER)
    def fill(self, many: int, track: int, size: int) -> None:
        """As a prompt does it."""
        for _ in range(many):
            self.world.open(track, size)
            self.world.seal(offer=True)

    def teardown(self) -> None:
        self.world.end()


class TestKVPlanner(KVPlannerMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@pytest.mark.soak
class TestKVPlannerForLong(KVPlannerMachine.TestCase):
    settings = settings(max_examples=3000, stateful_step_count=120, deadline=None)


def test_random_runs_end_well() -> None:
    for seed in range(30):
        assert not random_kv_run(seed).planner.books.pages


# --- single decisions -----------------------------------------------------------------------------------------------


class Small:
    """A planner with memory for 16 pages, 4 of them passing, and one track; its drive is at once done with writes."""

    def __init__(self, pages: int = 16) -> None:
        self.planner, self.pages, self.ticket = KVPlanner(pages * PAGE), list[Page](), 0

    def post(self, event: object) -> list[KVAction]:
        actions = self.planner.handle(event)  # type: ignore[arg-type]
        for action in (*actions,):
            if isinstance(action, WritePages):
                actions += self.post(PagesWritten(action.write))
        return actions

    def fill(self, count: int, *, seal: bool = True) -> "Small":
        for _ in range(count):
            page = Page(PAGE, None, 0, len(self.pages))
            self.pages.append(page)
            assert any(isinstance(action, Wake) for action in self.ask(Open, page))
            if seal:
                self.post(Seal([page]))
        return self

    def ask(self, request: type, what: object) -> list[KVAction]:
        self.ticket += 1
        return self.post(request(self.ticket, what))

    def read(self, actions: list[KVAction], error: Exception | None = None) -> list[KVAction]:
        """All that ``actions`` read lands."""
        return [
            more for each in actions if isinstance(each, ReadPages) for more in self.post(PagesRead(each.read, error))
        ]

    @property
    def absent(self) -> list[Page]:
        return [page for page in self.pages if page.slot is None]


def answers(actions: list[KVAction]) -> list[Wake | Refuse]:
    return [action for action in actions if isinstance(action, Wake | Refuse)]


def test_a_fetch_is_answered_when_all_its_pages_are_there() -> None:
    small = Small().fill(40)
    pages = small.absent[:2]
    begun = small.ask(FetchPages, pages)
    assert not answers(begun)
    (answer,) = answers(small.read(begun))
    assert isinstance(answer, Wake)
    assert list(answer.pages) == pages
    assert [page.memory for page in pages] == ["passing"] * 2
    small.post(LetGo(pages))
    assert [page.memory for page in pages] == ["absent"] * 2, "there is no room to stay"


def test_two_who_fetch_the_same_page_share_a_read() -> None:
    small = Small().fill(40)
    pages = small.absent[:1]
    begun = small.ask(FetchPages, pages)
    assert not small.ask(FetchPages, pages), "it is on its way"
    assert len(answers(small.read(begun))) == 2
    assert pages[0].leases == 2


def test_both_hear_of_a_read_that_fails() -> None:
    small = Small().fill(40)
    begun = small.ask(FetchPages, small.absent[:1])
    small.ask(FetchPages, small.absent[:1] or [small.pages[-1]])
    page = next(page for page in small.pages if page.memory == "coming")
    small.ask(FetchPages, [page])
    found = answers(small.read(begun, OSError("injected")))
    assert [type(answer) for answer in found] == [Refuse, Refuse]
    assert all(isinstance(answer, Refuse) and isinstance(answer.error, ReadError) for answer in found)
    assert (page.memory, page.leases) == ("absent", 0)


def test_who_fetches_takes_the_room_of_what_was_read_ahead_last() -> None:
    small = Small().fill(40)
    first, last = small.absent[:4], small.absent[-4:]
    small.read(small.ask(ReadAhead, first))
    assert [page.memory for page in first] == ["read"] * 4
    assert any(isinstance(action, ReadPages) for action in small.ask(FetchPages, last[:2]))
    assert [page.memory for page in first] == ["read", "read", "absent", "absent"]
    assert small.planner.room.given_up == 2


def test_reading_ahead_stops_where_the_ring_is_full() -> None:
    small = Small().fill(40)
    (answer,) = answers(small.ask(ReadAhead, small.absent[:6]))
    assert isinstance(answer, Wake)
    assert len(answer.pages) == 4


def test_what_waits_longest_gets_room_first() -> None:
    small = Small().fill(12, seal=False)
    first, second = (Page(PAGE, None, 1, index) for index in range(2))
    small.planner.handle(HoldPages(98, small.pages))  # or nobody could make room
    assert not small.ask(Open, first)
    assert not small.ask(Open, second)
    small.planner.handle(LetGo(small.pages))
    freed = small.post(Seal(small.pages[:1]))
    assert [answer.pages for answer in answers(freed) if isinstance(answer, Wake)] == []


def test_newest_pages_leave_first_and_only_when_they_are_stored() -> None:
    small = Small()
    small.fill(12)
    page = Page(PAGE, None, 0, 12)
    small.ask(Open, page)
    gone = [each.index for each in small.absent]
    assert gone
    assert gone == [*range(gone[0], gone[-1] + 1)]
    assert all(each.stored for each in small.absent)
    assert small.pages[0].memory == "kept", "the oldest stays"


def test_pages_with_more_attention_take_the_place_of_others() -> None:
    small = Small().fill(40)
    kept = [page for page in small.pages if page.memory == "kept"]
    wanted = small.absent[:1]
    small.post(Score(kept, [1.0] * len(kept)))
    small.post(Score(wanted, [2.0]))
    for memory in ("absent", "kept"):  # at first the page that it is to replace is written
        small.read(small.ask(FetchPages, wanted))
        small.post(LetGo(wanted))
        assert wanted[0].memory == memory
    assert sum(page.memory == "absent" for page in kept) == 1


def test_nobody_waits_where_nothing_can_make_room() -> None:
    small = Small().fill(12, seal=False)
    (answer,) = answers(small.ask(Open, Page(PAGE, None, 1, 0)))
    assert isinstance(answer, Refuse)
    assert isinstance(answer.error, BudgetTooSmall)


def test_a_drive_that_takes_nothing_is_told_to_who_needs_room_once() -> None:
    planner = KVPlanner(16 * PAGE)
    pages = [Page(PAGE, None, 0, index) for index in range(12)]
    for page in pages:
        planner.handle(Open(page.index, page))
    wrote = [each for each in planner.handle(Seal(pages)) if isinstance(each, WritePages)]
    assert not planner.handle(Open(50, Page(PAGE, None, 1, 0))), "it waits for the write"
    (answer,) = answers(planner.handle(PagesWritten(wrote[0].write, FlashFull("injected"))))
    assert isinstance(answer, Refuse)
    assert str(answer.error) == "injected"
    assert planner.room.trouble is None
    planner.check_integrity()


def test_memory_beyond_the_limit_is_left() -> None:
    small = Small().fill(12)
    small.post(SetLimit(8 * PAGE))
    assert all(page.slot is None or page.slot + page.size <= 8 * PAGE for page in small.pages)
    small.planner.check_integrity()


def test_whoever_asks_after_the_end_is_refused() -> None:
    small = Small().fill(40)
    begun = small.ask(FetchPages, small.absent[:1])
    small.post(Close())
    (ended,) = answers(small.read(begun))
    asked = answers(small.ask(HoldPages, small.pages))
    for answer in (ended, *asked):
        assert isinstance(answer, Refuse)
        assert isinstance(answer.error, Closed)
    small.planner.check_integrity()


# --- the tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "states"), [(MEMORY, InMemory), (FLASH, OnFlash)])
def test_the_table_has_every_state(table: dict[str, dict[str, str]], states: object) -> None:
    names = set(states.__args__)  # type: ignore[attr-defined]
    assert table.keys() == names
    assert {to for steps in table.values() for to in steps.values()} <= names


def test_the_opening_page_tells_every_step() -> None:
    """The steps that the table of events names are those of the tables of states."""
    rows = re.findall(r"([a-z]+) -> ([a-z]+)", planner_module.__doc__ or "")
    steps = {(state, to) for table in (MEMORY, FLASH) for state, found in table.items() for to in found.values()}
    told = {(state, to) for state, to in rows if state != "any"}
    assert told <= steps
    untold = steps - told - {(state, "freed") for state in MEMORY}
    assert untold == {("writing", "nowhere"), ("stored", "nowhere")}, "a write that fails, a page that is freed"


def test_a_step_that_is_not_in_the_table_is_a_bug() -> None:
    small = Small().fill(1)
    with pytest.raises(AssertionError, match="a page that is 'kept' cannot take the step 'seal'"):
        small.post(Seal(small.pages))


# --- who writes to pages --------------------------------------------------------------------------------------------

WRITERS = {
    "memory": {"books"},
    "flash": {"books"},
    "slot": {"memory"},
    "place": {"books"},
    "leases": {"books", "planner"},
    "refs": {"planner"},
    "attention_score": {"planner"},
    "up": {"device_pages"},
}
"""The fields of a page that change, and the modules of tiering/kv that change them."""


def written(path: Path) -> Iterator[tuple[str, str]]:
    """Fields of a page that ``path`` assigns, of anything but ``self``, each with the whole target."""
    for node in ast.walk(ast.parse(path.read_text())):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.For):
            targets = [node.target]
        for target in targets:
            for each in ast.walk(target):
                own = isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self"
                if isinstance(each, ast.Attribute) and each.attr in WRITERS and not own:
                    yield each.attr, f"{path.name}:{each.lineno}: {ast.unparse(each)}"


def test_pages_are_written_to_by_the_planner_alone() -> None:
    changing = set(WRITERS)
    assert changing < set(Page.__slots__)
    found = [
        (path, field, where)
        for part in ("kernels", "tiering", "runtime", "penstock")
        for path in (ROOT / part).rglob("*.py")
        for field, where in written(path)
    ]
    books = ROOT / "tiering" / "kv"
    assert not [where for path, field, where in found if path.parent != books or path.stem not in WRITERS[field]]
    assert {(field, path.stem) for path, field, _ in found} == {
        (field, stem) for field, stems in WRITERS.items() for stem in stems
    }
