"""All summaries, by name."""

from collections.abc import Mapping

from .base import Summary
from .boxes import Boxes
from .quantised_keys import QuantisedKeys
from .sketch import KeySketch

_KINDS: tuple[Summary, ...] = (Boxes(), KeySketch(8), KeySketch(16), QuantisedKeys(4), QuantisedKeys(8))

SUMMARIES: Mapping[str, Summary] = {kind.name: kind for kind in _KINDS}
"""From small to large. Use the one that ``fit`` returns. A new kind is a module, and a line here."""
