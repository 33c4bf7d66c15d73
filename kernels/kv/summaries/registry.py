"""The kinds of summary that there are, by name."""

from collections.abc import Mapping

from .base import Summary
from .boxes import Boxes
from .numbers import Numbers
from .sketch import Sketch

_KINDS: tuple[Summary, ...] = (Boxes(), Sketch(8), Sketch(16), Numbers(4), Numbers(8))

SUMMARIES: Mapping[str, Summary] = {kind.name: kind for kind in _KINDS}
"""From small to large. Take what ``fitted`` returns. A new kind is a module, and a line here."""
