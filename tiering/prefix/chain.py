"""Names of prefixes (pure): a chain of SHA-256 over blocks of token ids, begun with what the numbers depend on.

Each block's hash covers all tokens before it: one look-up says whether a whole prefix is known, whatever follows.
(vLLM's automatic prefix caching and SGLang's radix cache name blocks of a prompt in the same way.)
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
        """What block number ``index`` follows."""
        return self.hashes[index - 1] if index else self.root

    def span(self, first: int, count: int) -> tuple[int, ...]:
        """The tokens of ``count`` blocks from number ``first`` on."""
        return self.tokens[first * self.block : (first + count) * self.block]


def root_of(identity: Mapping[str, object], salt: str = "") -> str:
    """The hash before every chain. ``identity``, as JSON, says all that keys and values depend on but the tokens.

    Who does not know the ``salt`` of a namespace can neither find what is in it nor tell whether a text is.
    """
    described = dumps(identity, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(described).digest() + salt.encode()).hexdigest()


def chain_of(root: str, tokens: Sequence[int], block: int) -> Chain:
    """The chain over the full blocks of ``tokens``; what is left over at the end belongs to no block."""
    full = len(tokens) // block
    kept = tuple(map(int, tokens[: full * block]))
    hashes: list[str] = []
    last = bytes.fromhex(root)
    for index in range(full):
        last = hashlib.sha256(last + struct.pack(f"<{block}I", *kept[index * block : (index + 1) * block])).digest()
        hashes.append(last.hex())
    return Chain(root, block, kept, tuple(hashes))
