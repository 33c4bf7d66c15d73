"""A note in a bundle of what decides its weights alone: a checkpoint that changes in small files keeps its bundle."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...tiering.driving.small_files import read_small, write_durably
from ...tiering.driving.strict_json import Fields, parse_json

_FILE = "weights.json"
_LARGEST = 1 << 16
"""Most bytes of a note: three digests take a hundredth."""


@dataclass(frozen=True, slots=True)
class WeightsNote:
    """``source`` is the digest of what decides the weights of the checkpoint; ``own`` that of these as the bundle has
    them, ``plain`` the same without the order of experts and what formats were calibrated with."""

    source: str
    own: str
    plain: str


def read_note(bundle: Path) -> WeightsNote | None:
    """The note in ``bundle``; None where there is none that can be read."""
    try:
        fields = Fields(parse_json(read_small(bundle / _FILE, _LARGEST, follow=False)))
        note = WeightsNote(*(fields.text(name, "[0-9a-f]{1,128}") for name in ("source", "own", "plain")))
        fields.end()
    except (OSError, ValueError):
        return None
    return note


def write_note(bundle: Path, note: WeightsNote) -> None:
    """Write ``note`` into ``bundle``, unless it is there, or the bundle may not be written or is on a link."""
    if bundle.is_symlink() or read_note(bundle) == note:
        return
    try:
        write_durably(bundle / _FILE, json.dumps(asdict(note)) + "\n", alone=False)
    except OSError:
        return
