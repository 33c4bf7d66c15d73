"""Single tokens are timed a few at a time; all else is left out."""

from penstock.runtime.modules.run_meter import MOST, WINDOW, Counted, RunMeter
from penstock.tiering.policy.lessons import PerToken


class Machine:
    """A clock and counters that a test moves."""

    def __init__(self) -> None:
        self.now, self.taken = 0.0, False
        self.counted = Counted(0.0, 0.0, 0)
        self.meter = RunMeter(lambda: self.counted, lambda: self.taken, lambda: self.now)

    def forward(self, tokens: int = 1, seconds: float = 0.5) -> None:
        self.now += 100.0  # between two forwards, whatever the user does
        self.meter.begin()
        self.now += seconds
        stalled, reading, size = self.counted
        self.counted = Counted(stalled + 0.125, reading + 0.25, size + 1000)
        self.meter.end(tokens)

    def decode(self, windows: int) -> None:
        for _ in range(windows * WINDOW):
            self.forward()


def test_tokens_after_the_first_window_are_timed() -> None:
    machine = Machine()
    machine.forward(tokens=40, seconds=9.0)
    machine.decode(1)
    assert machine.meter.windows() == [], "the cache was cold"
    machine.decode(2)
    token, beside = machine.meter.windows()[-1]
    assert len(machine.meter.windows()) == 2
    assert token == PerToken(0.5, 0.125, 0.25, 1000)
    assert not beside


def test_a_prompt_a_failure_and_a_second_thread_end_a_window() -> None:
    machine = Machine()
    machine.decode(2)
    for disturb in (
        lambda: machine.forward(tokens=5),
        lambda: machine.forward(tokens=0),
        lambda: (machine.meter.begin(), machine.meter.begin(), machine.meter.end(1), machine.meter.end(1)),
    ):
        for _ in range(WINDOW - 1):
            machine.forward()
        disturb()
    assert len(machine.meter.windows()) == 1
    machine.decode(1)
    assert len(machine.meter.windows()) == 2


def test_other_programs_are_noted_and_few_windows_are_kept() -> None:
    machine = Machine()
    machine.decode(2)
    machine.taken = True
    machine.forward()
    machine.taken = False
    for _ in range(WINDOW - 1):
        machine.forward()
    assert [window.beside for window in machine.meter.windows()] == [False, True]
    machine.decode(MOST + 5)
    assert len(machine.meter.windows()) == MOST
