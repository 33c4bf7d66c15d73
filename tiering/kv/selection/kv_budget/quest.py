"""Which pages a step looks at where none is dropped: those with the greatest bounds of attention.

From "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference".
"""

from collections.abc import Collection, Sequence


def top(scores: Sequence[float], always: Collection[int], budget: int) -> list[int]:
    """Numbers of the pages to look at, ascending: ``always``, and of the others as many of the greatest ``scores`` as
    make ``budget`` with them; of equal ones the newer. ``scores`` has those of the first pages; ``always`` has all
    after these."""
    others = (page for page in range(len(scores)) if page not in always)
    ranked = sorted(others, key=lambda page: (-scores[page], -page))
    return sorted([*always, *ranked[: max(0, budget - len(always))]])
