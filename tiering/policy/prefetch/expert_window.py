"""How many experts a layer asks for at a time (pure)."""

_FEW = 64
"""Router choices up to which all experts are asked for at once."""
_WINDOW = 4
"""Experts that a prompt asks for at a time, so that neither leases nor outputs pile up."""
_LONG = 512
"""Choices per expert from which one at a time will do: to compute it takes longer than to read the next one."""


def at_a_time(experts: int, choices: int) -> int:
    """Of ``experts`` that a layer needs, where its tokens make ``choices`` choices in all."""
    if choices <= _FEW:
        return experts
    return 1 if choices >= _LONG * experts else _WINDOW
