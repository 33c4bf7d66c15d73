"""The same fixed random tokens for everyone."""

import torch

_LONGEST = 1 << 16


def fixed_tokens(length: int, vocabulary: int, *, row: int = 0) -> list[int]:
    """Give the first ``length`` token ids of a fixed random sequence. Each ``row`` is another sequence. A shorter
    one is a prefix of a longer one."""
    if length > _LONGEST:
        raise ValueError(f"there are {_LONGEST} fixed tokens, not {length}")
    ids = torch.randint(10, 30000, (_LONGEST,), generator=torch.Generator().manual_seed(row))[:length]
    return (ids % vocabulary).tolist()
