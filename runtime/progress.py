"""Where the runtime finds the protocol by which long work tells how far it is."""

from ..tiering.progress import Progress, Quiet

__all__ = ["Progress", "Quiet"]
