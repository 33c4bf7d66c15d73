"""The KV formats that there are, by name."""

from collections.abc import Mapping

from .as_is import AsIs
from .base import KVFormat

_ALL: tuple[KVFormat, ...] = (AsIs(),)

FORMATS: Mapping[str, KVFormat] = {format_.name: format_ for format_ in _ALL}
"""As settings and files name them. A new format is a module, and a line here."""
