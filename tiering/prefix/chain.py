"""Names of prefixes: a chain of SHA-256 over blocks of token ids (pure).

The root of a chain covers all that keys and values depend on. Each block's hash covers all tokens before it, so one
look-up tells whether a whole prefix is known. vLLM's automatic prefix caching and SGLang's radix cache name blocks in
the same way.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps


@dataclass(frozen=True, slots=True)
class Chain:
    """The full blocks of ``tokens``: ``hashes[i]`` names the prefix that ends with block i, of ``block`` tokens.

    ``root`` stands before the first block. All hashes are hexadecimal.
    """

    root: str
    block: int
    tokens: tuple[int, ...]
    hashes: tuple[str, ...]

    def first(self, blocks: int) -> "Chain":
        """The chain of the first ``blocks`` blocks."""
        return Chain(self.root, self.block, self.tokens[: blocks * self.block], self.hashes[:blocks])

    def before(self, index: int) -> str:
        """The hash before block number ``index``."""
        return self.hashes[index - 1] if index else self.root

    def span(self, first: int, count: int) -> tuple[int, ...]:
        """The tokens of ``count`` blocks from number ``first`` on."""
        return self.tokens[first * self.block : (first + count) * self.block]


def root_of(identity: Mapping[str, object], salt: str = "") -> str:
    """The hash before every chain. ``identity``, as JSON, has all that keys and values depend on, except the tokens.

    Without the ``salt`` of a namespace, nobody can find its prefixes or test whether a text is among them.
    """
    described = dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(described).digest() + salt.encode()).hexdigest()


def chain_of(root: str, tokens: Sequence[int], block: int) -> Chain:
    """The chain over the full blocks of ``tokens``. Tokens left over at the end belong to no block."""
    full = len(tokens) // block
    kept = tuple(map(int, tokens[: full * block]))
    hashes: list[str] = []
    last = bytes.fromhex(root)
    for index in range(full):
        last = hashlib.sha256(last + struct.pack(f"<{block}I", *kept[index * block : (index + 1) * block])).digest()
        hashes.append(last.hex())
    return Chain(root, block, kept, tuple(hashes))
