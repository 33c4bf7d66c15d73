"""Results of kernels as results.c writes them, and where two levels differ by more than they may. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Result:
    """``content`` is float32 if it may differ by ``slack`` and a ``share`` of each number, else bytes."""

    name: str
    content: NDArray[np.float32] | NDArray[np.uint8]
    slack: float = 0.0
    share: float = 0.0


def read(output: bytes) -> tuple[tuple[str, ...], list[Result]]:
    """The levels that the processor runs, and the results."""
    head, rest = output.split(b"\n", 1)
    results = []
    while rest:
        line, rest = rest.split(b"\n", 1)
        words = line.decode().split(" ")
        if "equal" in words:
            at = words.index("equal")
            size = int(words[at + 1])
            results.append(Result(" ".join(words[:at]), np.frombuffer(rest[:size], np.uint8)))
        else:
            at = words.index("near")
            size = 4 * int(words[at + 1])
            slack, share = map(float, words[at + 2 :])
            results.append(Result(" ".join(words[:at]), np.frombuffer(rest[:size], np.float32), slack, share))
        rest = rest[size:]
    return tuple(head.decode().split(" ")[1:]), results


def compare(expected: Sequence[Result], found: Sequence[Result]) -> list[str]:
    """What differs, a line each."""
    if [result.name for result in expected] != [result.name for result in found]:
        return ["it has other results"]
    return [fault for one, other in zip(expected, found, strict=True) if (fault := _difference(one, other))]


def _difference(one: Result, other: Result) -> str:
    a, b = one.content, other.content
    if a.dtype == np.uint8:
        count = int((a != b).sum()) if len(a) == len(b) else len(a)
        return f"{one.name}: {count} of {len(a)} bytes differ" if count else ""
    if not np.isfinite(a[np.isfinite(b)]).all() or not np.array_equal(a[~np.isfinite(b)], b[~np.isfinite(b)]):
        return f"{one.name}: other numbers are infinite"
    there = np.isfinite(a)
    off = np.abs(a[there].astype(np.float64) - b[there]) - one.slack - one.share * np.abs(a[there].astype(np.float64))
    count = int((off > 0).sum())
    return f"{one.name}: {count} of {len(a)} numbers differ, by up to {off.max():.3g} too much" if count else ""
