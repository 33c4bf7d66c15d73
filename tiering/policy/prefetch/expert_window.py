"""The number of experts that a layer asks for at a time (pure)."""

_FEW = 64
"""Up to this many router choices, all experts are asked for at once."""
_WINDOW = 4
"""Experts that a prompt asks for at a time. It bounds leases and outputs."""
_LONG = 512
"""From this many choices per expert, one at a time suffices: computing it takes longer than reading the next one."""


def at_a_time(experts: int, choices: int) -> int:
    """Experts to ask for at a time, of ``experts`` that a layer needs for ``choices`` router choices."""
    if choices <= _FEW:
        return experts
    return 1 if choices >= _LONG * experts else _WINDOW
