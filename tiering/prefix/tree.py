"""The tree of prefixes on flash: look-up and eviction (pure).

A file holds a run of blocks. A run may follow a block of another file. A block needs all blocks before it, so the end
of a prefix is evicted before its beginning, and a block that another block follows is never evicted.
tiering/store/prefixes/prefix_notes.py keeps the index on disk.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from .header import Header


@dataclass(frozen=True, slots=True)
class Record:
    """The index entry of a prefix file.

    ``hashes`` are those of its blocks, ``ends`` their ends in the file. ``state`` names the prefix that its state
    belongs to. ``length`` (bytes) and ``used`` (nanoseconds) are those of the file now: blocks behind ``length`` are
    gone.
    """

    name: str
    label: str
    root: str
    parent: str
    first: int
    block: int
    hashes: tuple[str, ...]
    ends: tuple[int, ...]
    state: str | None
    end: int
    explicit: bool
    length: int = 0
    used: int = 0

    def as_of(self, length: int, used: int) -> "Record":
        """The record of the file, now ``length`` bytes long and last used at ``used``."""
        blocks = sum(end <= length for end in self.ends)
        state = self.state if self.end <= length else None
        return replace(
            self, hashes=self.hashes[:blocks], ends=self.ends[:blocks], state=state, length=length, used=used
        )

    @property
    def tokens(self) -> int:
        """Tokens of the whole prefix that ends here."""
        return (self.first + len(self.hashes)) * self.block


def record_of(name: str, header: Header, hashes: Sequence[str]) -> Record:
    """The index entry of a file with ``header``, whose blocks have these ``hashes``."""
    return Record(
        name=name,
        label=header.label,
        root=header.root,
        parent=header.parent,
        first=header.first,
        block=header.block,
        hashes=tuple(hashes),
        ends=tuple(extent.end for extent in header.blocks),
        state=([header.parent, *hashes][-1]) if header.state else None,
        end=header.end,
        explicit=header.explicit,
    )


@dataclass(frozen=True, slots=True)
class Span:
    """``count`` blocks of the file ``name`` from its block ``index`` on."""

    name: str
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix: ``blocks`` blocks in ``spans``, with its state in the file ``state``."""

    blocks: int
    spans: tuple[Span, ...] = ()
    state: str | None = None
    explicit: bool = False

    @property
    def names(self) -> set[str]:
        """Names of all files of the match."""
        return {span.name for span in self.spans} | ({self.state} if self.state else set())


def longest(
    records: Iterable[Record], hashes: Sequence[str], *, with_state: bool, without: Collection[str] = ()
) -> Match:
    """The longest stored beginning of the chain ``hashes``.

    ``with_state``, it must end where a state is stored. Files in ``without`` do not count.
    """
    holders: dict[str, tuple[Record, int]] = {}
    states: dict[str, Record] = {}
    for record in records:
        if record.name not in without:
            holders |= {hash_: (record, index) for index, hash_ in enumerate(record.hashes)}
            if record.state:
                states[record.state] = record
    blocks = next((index for index, hash_ in enumerate(hashes) if hash_ not in holders), len(hashes))
    if with_state:
        blocks = next((n for n in range(blocks, 0, -1) if hashes[n - 1] in states), 0)
    if not blocks:
        return Match(0)
    spans: list[Span] = []
    for hash_ in hashes[:blocks]:
        record, index = holders[hash_]
        last = spans[-1] if spans else None
        if last and (last.name, last.index + last.count) == (record.name, index):
            spans[-1] = replace(last, count=last.count + 1)
        else:
            spans.append(Span(record.name, index, 1))
    state = states[hashes[blocks - 1]] if with_state else None
    explicit = holders[hashes[blocks - 1]][0].explicit or bool(state and state.explicit)
    return Match(blocks, tuple(spans), state.name if state else None, explicit)


@dataclass(frozen=True, slots=True)
class Cut:
    """Shorten the file ``name`` to ``length`` bytes, or remove it if that is 0."""

    name: str
    length: int


def make_room(records: Iterable[Record], wanted: int, *, spared: Collection[str] = ()) -> list[Cut]:
    """The cuts that free ``wanted`` bytes: ends of prefixes, least recently used first.

    Blocks that others follow, and blocks with hashes in ``spared``, stay. If too little may go, all that may go goes.
    """
    left = {record.name: record for record in records}
    followers = Counter(record.parent for record in left.values()) + Counter(spared)
    cuts: dict[str, Cut] = {}
    while wanted > 0:
        ends = [(record.used, -record.first, name) for name, record in left.items() if _end(record, followers) >= 0]
        if not ends:
            break
        name = min(ends)[2]
        record = left.pop(name)
        keep = _keep(record, followers, wanted)
        length = record.ends[keep - 1] if keep else 0
        cuts[name] = Cut(name, length)
        wanted -= record.length - length
        if keep:
            left[name] = record.as_of(length, record.used)
        else:
            followers[record.parent] -= 1
    return list(cuts.values())


def orphans(records: Iterable[Record]) -> list[Record]:
    """Unreachable files: they hold nothing, or follow a block that is missing."""
    there: set[str] = set()
    lost: list[Record] = []
    for record in sorted(records, key=lambda record: record.first):
        follows = record.parent in there or (record.first == 0 and record.parent == record.root)
        if follows and (record.hashes or record.state):
            there.update(record.hashes)
        else:
            lost.append(record)
    return lost


def _fixed(record: Record, followers: Counter[str]) -> int:
    """The number of leading blocks of the file up to the last one that another file follows."""
    return max((n for n, hash_ in enumerate(record.hashes, 1) if followers[hash_] > 0), default=0)


def _end(record: Record, followers: Counter[str]) -> int:
    """Bytes that may go from the end of the file; -1 if none may."""
    fixed = _fixed(record, followers)
    spare = record.length - (record.ends[fixed - 1] if fixed else 0)
    return spare if spare > 0 else -1


def _keep(record: Record, followers: Counter[str], wanted: int) -> int:
    """The number of blocks that stay when ``wanted`` bytes should go."""
    fixed = _fixed(record, followers)
    if record.state:  # blocks that lead to a state are useless without it
        return fixed
    return max(
        (n for n in range(fixed, len(record.hashes)) if record.length - (record.ends[n - 1] if n else 0) >= wanted),
        default=fixed,
    )


def stale(records: Iterable[Record], before: int) -> list[Record]:
    """Files not used since ``before`` (nanoseconds), nor followed by a file used since."""
    left = sorted(records, key=lambda record: -record.first)
    followers = Counter(record.parent for record in left)
    gone: list[Record] = []
    for record in left:
        if record.used < before and not any(followers[hash_] for hash_ in record.hashes):
            gone.append(record)
            followers[record.parent] -= 1
    return gone
