"""Where a bundle comes from, and when it was last used: a note in it, for people who make room."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ...driving.small_files import read_small, write_durably
from ...driving.strict_json import Fields, parse_json

CLASS_FILE = "model_class.json"
"""Beside the configuration of a model that was wrapped: the class of it."""
_FILE = "origin.json"
_LARGEST = 1 << 14


@dataclass(frozen=True, slots=True)
class Origin:
    """``source`` as the user named it: a path or a hub id; "" if it is not known. ``used`` in seconds since 1970."""

    source: str
    used: float


def read_origin(bundle: Path) -> Origin:
    """The origin of ``bundle``. One without a note was last used when it was packed, as far as is known."""
    try:
        fields = Fields(parse_json(read_small(bundle / _FILE, _LARGEST, follow=False)))
        source = fields.text("source", ".{0,4096}")
        fields.end()
        return Origin(source, (bundle / _FILE).stat().st_mtime)
    except (OSError, ValueError):
        return Origin("", (bundle / "manifest.json").stat().st_mtime)


def note_use(bundle: Path, source: str = "") -> None:
    """``bundle`` is used now, for ``source`` if that is known. Nothing happens where it may not be written."""
    if bundle.is_symlink():
        return
    try:
        if source and read_origin(bundle).source != source:
            write_durably(bundle / _FILE, json.dumps({"source": source}) + "\n", mode=0o600, alone=False)
        os.utime(bundle / _FILE)
    except (OSError, ValueError):
        return
