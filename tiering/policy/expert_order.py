"""The order of a layer's experts on flash that saves reads, and how many it saves (pure).

Experts that lie end to end and are wanted together take one read. A group of experts takes one read for each, less one
for each pair of neighbours that are both in the group. So the best order is the path through all experts with the
greatest sum of pair counts. That is a travelling salesman problem. The heaviest pairs that form a path are taken first,
then pieces of the path are reversed as long as that helps. "Ripple: Accelerating LLM Inference on Smartphones with
Correlation-Aware Neuron Management" does this with neurons.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

PairCounts = Sequence[Sequence[int]]
"""Counts of pairs of experts used together, [experts][experts], symmetric."""

LEAST_GAIN = 0.05
"""Least share of reads saved for which the order is changed."""

_ROUNDS = 50
"""Most passes of reversing pieces."""


@dataclass(frozen=True, slots=True)
class Gain:
    """The gain of an order: reads per group of experts wanted together, over ``groups`` groups."""

    groups: int
    reads_before: float
    """Per group, with experts in the order of their numbers."""
    reads_after: float
    """Per group, with experts in the new order."""
    bytes_per_group: float

    @property
    def bytes_per_read_before(self) -> float:
        return self.bytes_per_group / self.reads_before if self.reads_before else 0.0

    @property
    def bytes_per_read_after(self) -> float:
        return self.bytes_per_group / self.reads_after if self.reads_after else 0.0

    @property
    def worth_it(self) -> bool:
        """Whether the order saves enough reads to be used."""
        return self.reads_before > 0 and self.reads_after <= self.reads_before * (1 - LEAST_GAIN)


def count_pairs(groups: Iterable[Collection[int]], experts: int) -> list[list[int]]:
    """For each pair of ``experts`` experts, the number of ``groups`` that have both."""
    counts = [[0] * experts for _ in range(experts)]
    for group in groups:
        for one, other in combinations(group, 2):
            counts[one][other] += 1
            counts[other][one] += 1
    return counts


def order_by_use(counts: PairCounts) -> list[int]:
    """The experts in an order in which pairs with great ``counts`` are neighbours. Ties go by number."""
    path = _greedy_path(counts)
    for _ in range(_ROUNDS):
        if not _turn_pieces(path, counts):
            break
    return path if not path or path[0] < path[-1] else path[::-1]


def reads(group: Collection[int], place: Sequence[int], most: int) -> int:
    """Reads for ``group`` of experts that lie at ``place``. At most ``most`` experts join into one read."""
    places = sorted(place[expert] for expert in group)
    count = length = 0
    for position, here in enumerate(places):
        if position and here == places[position - 1] + 1 and length < most:
            length += 1
        else:
            count, length = count + 1, 1
    return count


def gain(groups: Sequence[Collection[int]], order: Sequence[int], *, expert_bytes: int, read_limit: int) -> Gain:
    """The gain of ``order`` for ``groups``. An expert has ``expert_bytes``, a read at most ``read_limit`` bytes.

    The groups should not be the ones that the order was made from.
    """
    most = max(1, read_limit // expert_bytes)
    numbers = list(range(len(order)))
    place = sorted(numbers, key=order.__getitem__)
    count = max(1, len(groups))
    return Gain(
        groups=len(groups),
        reads_before=sum(reads(group, numbers, most) for group in groups) / count,
        reads_after=sum(reads(group, place, most) for group in groups) / count,
        bytes_per_group=sum(map(len, groups)) * expert_bytes / count,
    )


def _greedy_path(counts: PairCounts) -> list[int]:
    """A path made of the heaviest pairs, the heaviest first."""
    experts = len(counts)
    paths = {expert: [expert] for expert in range(experts)}  # by either end of the path
    pairs = sorted(combinations(range(experts), 2), key=lambda pair: -counts[pair[0]][pair[1]])
    for one, other in pairs:
        first, second = paths.get(one), paths.get(other)
        if first is None or second is None or first is second:
            continue
        if first[-1] != one:
            first.reverse()
        if second[0] != other:
            second.reverse()
        for end in (first[0], first[-1], second[0], second[-1]):
            paths.pop(end, None)
        joined = first + second
        paths[joined[0]] = paths[joined[-1]] = joined
    return next(iter(paths.values()), [])


def _turn_pieces(path: list[int], counts: PairCounts) -> bool:
    """Reverse every piece of ``path`` where that increases the sum of counts; whether there was one."""
    better = False
    last = len(path) - 1
    for start in range(last):
        for end in range(start + 1, last + 1):
            before = after = 0
            if start:
                before += counts[path[start - 1]][path[start]]
                after += counts[path[start - 1]][path[end]]
            if end < last:
                before += counts[path[end]][path[end + 1]]
                after += counts[path[start]][path[end + 1]]
            if after > before:
                path[start : end + 1] = path[start : end + 1][::-1]
                better = True
    return better
