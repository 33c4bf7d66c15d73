"""Sharing of beginnings: nobody waits for ever, nothing that is wanted is computed twice, nothing stays unwanted."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.tiering.serving.sharing import Sharing


def hashes(prompt: str) -> list[str]:
    return [prompt[:end] for end in range(1, len(prompt) + 1)]


class Machine(RuleBasedStateMachine):
    """Prompts of letters, each a block, come; they begin in their order, give what they make, or end before."""

    def __init__(self) -> None:
        super().__init__()
        self.sharing = Sharing()
        self.count = 0
        self.waiting: dict[int, str] = {}
        self.making: dict[int, tuple[str, list[int]]] = {}
        self.kept: set[str] = set()

    @rule(prompt=st.text("ab", max_size=6))
    def offer(self, prompt: str) -> None:
        self.sharing.offer(self.count, hashes(prompt))
        self.waiting[self.count] = prompt
        self.count += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([*self.waiting]))
        prompt = self.waiting[number]
        if self.sharing.waits(number):
            coming = {each[:count] for each, makes in self.making.values() for count in makes}
            assert coming & {*hashes(prompt)}, "somebody who is there computes it"
            return
        role = self.sharing.begin(number)
        del self.waiting[number]
        assert role.has is None or (role.has in self.kept and prompt.startswith(role.has))
        has = len(role.has or "")
        assert not any(prompt.startswith(other) and len(other) > has for other in self.kept), "it is the longest"
        for count in role.makes:
            assert has < count <= len(prompt)
            assert any(other.startswith(prompt[:count]) for other in self.waiting.values())
        if role.makes:
            self.making[number] = (prompt, [*role.makes])
        self.drop()

    @precondition(lambda self: self.making)
    @rule(data=st.data())
    def make(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([*self.making]))
        prompt, makes = self.making[number]
        count = makes.pop(0)
        if not makes:
            del self.making[number]
        hash_ = self.sharing.made(number, count)
        assert (hash_ is not None) == any(other.startswith(prompt[:count]) for other in self.waiting.values())
        if hash_ is not None:
            self.kept.add(hash_)

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.count - 1))
        self.sharing.end(number)
        self.waiting.pop(number, None)
        self.making.pop(number, None)
        self.drop()

    def drop(self) -> None:
        gone = {*self.sharing.drop()}
        assert gone == {
            each for each in self.kept if not any(other.startswith(each) for other in self.waiting.values())
        }
        self.kept -= gone

    @invariant()
    def nobody_waits_where_nobody_computes(self) -> None:
        if not self.making:
            assert not any(self.sharing.waits(number) for number in self.waiting)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
