"""Admission: a state machine against rules that any server must keep, and examples of who comes first."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.tiering.serving.admission import Admission, Priority, Room, Ticket
from penstock.tiering.serving.kv_room import KVRoom, LayerRoom

MEMORY, FLASH, PAGE = 100, 600, 10


def kv_room(*, memory: int = MEMORY, flash: int | None = FLASH, spills: bool = True) -> KVRoom:
    """Room for two layers with pages of ten tokens, of a byte per token on each side, one with a window."""
    pages = {"tokens": PAGE, "open": (PAGE, PAGE), "stored": (PAGE, PAGE), "extent": 4 * PAGE}
    return KVRoom(memory, flash, (LayerRoom(**pages), LayerRoom(**pages, newest=2, window=25)), spills)


class Machine(RuleBasedStateMachine):
    """Requests come, end and run late, at any time."""

    spills = True

    def __init__(self) -> None:
        super().__init__()
        self.kv = kv_room(spills=self.spills)
        self.admission = Admission(Room(rows=3, queue=4, kv=self.kv))
        self.now = 0.0
        self.count = 0
        self.alive: dict[int, Ticket] = {}
        self.started: set[int] = set()
        self.is_paused: set[int] = set()

    @rule(
        tokens=st.integers(1, 300),
        client=st.sampled_from("ab"),
        priority=st.sampled_from(["interactive", "batch"]),
        patience=st.one_of(st.none(), st.floats(0.5, 3)),
    )
    def offer(self, tokens: int, client: str, priority: Priority, patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        ticket = Ticket(self.count, tokens, client, priority, deadline)
        self.count += 1
        waited, running = len(self.admission.waiting), len(self.admission.running)
        if self.admission.offer(ticket):
            self.alive[ticket.number] = ticket
        else:
            assert waited == 4 + 3 - running, "it is refused only by a full queue"

    @rule(number=st.integers(0, 40))
    def end(self, number: int) -> None:
        self.admission.end(number)
        self.alive.pop(number, None)

    @rule(seconds=st.floats(0, 1))
    def decide(self, seconds: float) -> None:
        self.now += seconds
        changes = self.admission.decide(self.now)
        for ticket in changes.late:
            assert ticket.deadline is not None
            assert ticket.deadline <= self.now
            del self.alive[ticket.number]
        for ticket in changes.unfit:
            assert self.kv.needs(ticket.tokens).flash > FLASH
            del self.alive[ticket.number]
        for ticket in changes.pause:
            assert changes.start or changes.resume, "somebody takes its place"
            assert ticket.priority == "batch"
            assert ticket.number in self.started - self.is_paused
            self.is_paused.add(ticket.number)
        for ticket in changes.resume:
            assert ticket.number in self.is_paused
            self.is_paused.remove(ticket.number)
        for ticket in changes.start:
            assert ticket.number not in self.started
            self.started.add(ticket.number)
        if self.alive:
            assert self.admission.running, "something runs as long as anybody waits"

    @invariant()
    def each_is_in_one_place(self) -> None:
        admission = self.admission
        numbers = [ticket.number for ticket in (*admission.waiting, *admission.running, *admission.paused)]
        assert sorted(numbers) == sorted(self.alive)

    @invariant()
    def room_is_kept(self) -> None:
        admission = self.admission
        assert len(admission.running) <= 3
        assert len(admission.waiting) <= 4 + 3
        running = [self.kv.needs(ticket.tokens) for ticket in admission.running]
        begun = [*running, *(self.kv.needs(ticket.tokens) for ticket in admission.paused)]
        assert sum(each.newest for each in (running if self.spills else begun)) <= MEMORY
        assert sum(each.flash for each in begun) <= FLASH or sum(each.whole for each in begun) <= MEMORY


class KeepingMachine(Machine):
    """Paused requests stay in memory."""

    spills = False


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestKeepingMachine = KeepingMachine.TestCase
TestKeepingMachine.settings = TestMachine.settings


def numbers(tickets: tuple[Ticket, ...]) -> list[int]:
    return [ticket.number for ticket in tickets]


def test_clients_take_turns() -> None:
    admission = Admission(Room(rows=3, queue=9))
    for number in range(4):
        admission.offer(Ticket(number, 10, "many"))
    admission.offer(Ticket(4, 10, "one"))
    assert numbers(admission.decide(0).start) == [0, 4, 1]
    admission.end(0)
    admission.offer(Ticket(5, 10, "one"))
    assert numbers(admission.decide(0).start) == [5], "it was given less than the other"


def test_an_interactive_request_pauses_the_youngest_of_a_batch() -> None:
    admission = Admission(Room(rows=2, queue=9))
    for number in range(3):
        admission.offer(Ticket(number, 10, priority="batch"))
    assert numbers(admission.decide(0).start) == [0, 1]
    admission.offer(Ticket(3, 10))
    changes = admission.decide(0)
    assert (numbers(changes.pause), numbers(changes.start)) == ([1], [3])
    admission.end(3)
    changes = admission.decide(0)
    assert (numbers(changes.resume), numbers(changes.start)) == ([1], []), "who has begun goes on before another begins"


def test_nobody_pauses_for_one_that_has_no_room_all_the_same() -> None:
    admission = Admission(Room(rows=2, queue=9, kv=kv_room(flash=300)))
    admission.offer(Ticket(0, 50, priority="batch"))
    admission.decide(0)
    admission.offer(Ticket(1, 70))
    assert admission.decide(0) == admission.decide(0)
    assert numbers((*admission.running,)) == [0]
    assert not admission.fits(Ticket(2, 400))


def test_a_request_waits_for_the_memory_of_its_newest_pages() -> None:
    """Each takes a page of one layer and two of the other, of ten bytes on each side: one at a time in 100 bytes."""
    admission = Admission(Room(rows=9, queue=9, kv=kv_room(flash=None)))
    for number in range(2):
        admission.offer(Ticket(number, 500))
    assert numbers(admission.decide(0).start) == [0]
    assert numbers(admission.decide(1).start) == []
    admission.end(0)
    assert numbers(admission.decide(2).start) == [1]


def test_who_pauses_gives_memory_only_if_it_spills() -> None:
    for spills, paused, started in ((True, [0], [1]), (False, [], [])):
        admission = Admission(Room(rows=9, queue=9, kv=kv_room(flash=None, spills=spills)))
        admission.offer(Ticket(0, 500, priority="batch"))
        admission.decide(0)
        admission.offer(Ticket(1, 500))
        changes = admission.decide(0)
        assert (numbers(changes.pause), numbers(changes.start)) == (paused, started)


def test_paused_requests_go_on_when_the_first_waits_for_what_they_hold() -> None:
    admission = Admission(Room(rows=1, queue=9, kv=kv_room(flash=400)))
    admission.offer(Ticket(0, 50, priority="batch"))
    admission.decide(0)
    admission.offer(Ticket(1, 10))
    assert numbers(admission.decide(0).pause) == [0]
    admission.offer(Ticket(2, 70))
    admission.end(1)
    assert numbers(admission.decide(0).resume) == [0], "the other one has no room on flash beside it"
    admission.end(0)
    assert numbers(admission.decide(0).start) == [2]


def test_what_never_fits_is_told_so_and_the_most_that_does_is_known() -> None:
    admission = Admission(Room(rows=1, queue=9, kv=kv_room(flash=300)))
    most = kv_room(flash=300).most_tokens(1000)
    admission.offer(Ticket(0, most))
    admission.offer(Ticket(1, most + 1))
    changes = admission.decide(0)
    assert (numbers(changes.start), numbers(changes.unfit)) == ([0], [1])
    assert kv_room(memory=10).most_tokens(1000) == 0
