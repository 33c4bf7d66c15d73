"""The weight formats that there are, by name."""

from collections.abc import Mapping

from .base import Format

FORMATS: Mapping[str, Format] = {}
"""As manifests name them. A new format is a module, and a line here."""
