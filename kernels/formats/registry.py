"""The weight formats by name."""

from collections.abc import Mapping

from .base import Format
from .fp8 import Fp8
from .gguf import GGUF
from .int4 import Int4
from .int8 import Int8
from .lossless import Lossless
from .mxfp4 import Mxfp4
from .nested import NESTED, STACKED
from .uint4 import Uint4

_OURS: tuple[Format, ...] = (Lossless(), Int8(), Int4(32), Int4(64), Int4(128), NESTED, STACKED)
_SOURCES: tuple[Format, ...] = (
    *GGUF,
    Mxfp4(),
    *(Fp8(rows) for rows in (128, 1)),
    Fp8(1, 32),
    *(Uint4(group, ordered=ordered) for group in (32, 64, 128, 0) for ordered in (False, True)),
)
"""Formats of checkpoints that are already quantised."""

FORMATS: Mapping[str, Format] = {format_.name: format_ for format_ in (*_OURS, *_SOURCES)}
"""All formats by their names in manifests. A new format is a module, and a line here."""
ENCODING: Mapping[str, Format] = {format_.name: format_ for format_ in _OURS}
"""The formats that can store any weights."""
