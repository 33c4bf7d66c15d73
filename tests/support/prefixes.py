"""Prefixes without a model: their bytes follow from their tokens, so that a wrong one shows."""

import hashlib
from collections.abc import Iterator, Sequence

from penstock.kernels.memory.arena import Arena
from penstock.tiering.prefix.chain import Chain, chain_of, root_of
from penstock.tiering.prefix.roles import Role, StoredTensor
from penstock.tiering.store.prefixes.prefixes import PrefixStore

BLOCK = 4
PARTS = (
    StoredTensor(Role(0, "keys"), "float8_e5m2", (2, BLOCK, 625)),
    StoredTensor(Role(0, "values"), "float8_e5m2", (2, BLOCK, 512)),
)
STATE = (StoredTensor(Role(1, "conv", 0), "float8_e5m2", (1, 300)),)
ROOT = root_of({"weights": "w"})


def chain(*tokens: int, root: str = ROOT) -> Chain:
    """Of whole blocks; each of ``tokens`` fills one."""
    return chain_of(root, [token for token in tokens for _ in range(BLOCK)], BLOCK)


def content(hash_: str, name: str, length: int) -> bytes:
    return (hashlib.sha256((hash_ + name).encode()).digest() * (length // 32 + 1))[:length]


def save(store: PrefixStore, wanted: Chain, *, state: bool = False, explicit: bool = False) -> int:
    def fill(block: int | None, part: int, buffer: memoryview) -> None:
        about = (STATE if block is None else PARTS)[part]
        buffer[:] = content(wanted.hashes[-1 if block is None else block], about.name, about.length)

    return store.save(wanted, fill, label="m", parts=PARTS, state_parts=STATE if state else (), explicit=explicit)


def load(store: PrefixStore, wanted: Chain, *, state: bool = False) -> int:
    """How many blocks are found and intact; what is intact must be right."""
    found = store.open(wanted, with_state=state)
    if found is None:
        return 0
    with found:
        kept: dict[int | None, list[memoryview]] = {}

        def into(block: int | None) -> Iterator[Sequence[memoryview]]:
            parts = found.state_parts if block is None else found.parts
            kept[block] = [Arena(part.room).view(0, part.room) for part in parts]
            yield kept[block]

        if not found.read(into):
            return 0
        for block, views in kept.items():
            hash_ = wanted.hashes[found.blocks - 1 if block is None else block]
            for part, view in zip(found.state_parts if block is None else found.parts, views, strict=True):
                assert bytes(view[: part.length]) == content(hash_, part.name, part.length)
        assert set(kept) == set(range(found.blocks)) | ({None} if state else set())
        return found.blocks
