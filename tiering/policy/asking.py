"""How many experts a layer asks for at a time (pure)."""

_FEW = 64
"""Router choices up to which all experts are asked for at once."""
_WINDOW = 4
"""Experts that a prompt asks for at a time, so that neither leases nor outputs pile up."""


def at_a_time(experts: int, choices: int) -> int:
    """Of ``experts`` that a layer needs, where its tokens make ``choices`` choices in all."""
    return experts if choices <= _FEW else _WINDOW
