"""What the tests of reading share: segments to read into, and an outcome that can be waited for."""

import queue
from collections.abc import Sequence

from penstock.kernels.io.directio import Segment
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE
from penstock.kernels.waiting import may_wait

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""


class Outcome:
    """A ``then`` that can be waited for."""

    def __init__(self) -> None:
        self._answers: queue.Queue[Exception | None] = queue.Queue()
        self.on_reader_thread = False

    def __call__(self, problem: Exception | None) -> None:
        self.on_reader_thread = not may_wait()
        self._answers.put(problem)

    def __bool__(self) -> bool:
        return not self._answers.empty()

    def get(self) -> Exception | None:
        answer = self._answers.get(timeout=SOON)
        assert self._answers.empty(), "answered twice"
        return answer


def segments_of(arena: Arena, offset: int, pages: Sequence[int], gap: int = 1) -> list[Segment]:
    """Segments of so many pages each, adjacent in the file from ``offset`` on, ``gap`` pages apart in memory."""
    segments, place = [], 0
    for count in pages:
        segments.append(Segment(offset, arena.view(place, count * PAGE)))
        offset += count * PAGE
        place += (count + gap) * PAGE
    return segments


def joined(segments: Sequence[Segment]) -> bytes:
    return b"".join(segment.buffer for segment in segments)
