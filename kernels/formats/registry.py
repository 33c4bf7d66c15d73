"""The weight formats that there are, by name."""

from collections.abc import Mapping

from .base import Format
from .nested import NESTED, STACKED

FORMATS: Mapping[str, Format] = {format.name: format for format in (NESTED, STACKED)}
"""As manifests name them. A new format is a module, and a line here."""
