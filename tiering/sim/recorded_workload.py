"""What the streams of a recorded run did (pure), to be simulated on other devices, budgets and policies.

recording.py replays a run as it was and compares the actions.
"""

from ..events import Acquire, Begin, End, Expect, Stream
from ..units import BlockId
from .recording import Recording
from .workload import Pass

_IN_WINDOWS = 1 << 16
"""Stands for the unknown number of choices of a pass that asked for a few experts at a time."""


class _Notes:
    """One pass while it goes on: by module, the experts it asked for, and those it expected."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[int, None]] = {}
        self.guessed: dict[str, list[int]] = {}
        self.choices = 0

    def ask(self, blocks: tuple[BlockId, ...]) -> None:
        known = self.asked.setdefault(blocks[0].module, {})
        new = [block.part for block in blocks if block.part not in known]
        if known and new:
            self.choices = _IN_WINDOWS
        known.update(dict.fromkeys(new))
        self.choices = max(self.choices, len(known))

    def done(self, modules: list[str]) -> Pass:
        chosen = [list(self.asked.get(module, ())) for module in modules]
        guessed = [self.guessed.get(module, []) for module in modules[1:]]
        return Pass(1, chosen, choices=self.choices, guessed=guessed)


def passes_of(recording: Recording) -> dict[Stream, list[Pass]]:
    """For each stream its passes, with the experts that it chose and guessed.

    How many tokens a pass had is not recorded: every one counts as one token (``dataclasses.replace`` sets it right).
    Nothing is known of a guess that the planner did not want at the time.
    """
    modules = list(dict.fromkeys(block.module for block in recording.setup.homes if block.kind == "expert"))
    running: dict[Stream, _Notes] = {}
    found: dict[Stream, list[Pass]] = {}
    for _, event, _ in recording.steps:
        match event:
            case Begin():
                running[event.stream] = _Notes()
            case Acquire(_, stream, blocks) if stream in running and blocks and blocks[0].kind == "expert":
                running[stream].ask(blocks)
            case Expect(stream, _, guessed, _) if stream in running and guessed:
                running[stream].guessed[guessed[0].module] = [block.part for block in guessed]
            case End() if event.stream in running:
                found.setdefault(event.stream, []).append(running.pop(event.stream).done(modules))
    return found
