"""A note in a bundle of what decides its weights alone: a checkpoint that changes in small files keeps its bundle."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ...tiering.driving.small_files import write_durably

_FILE = "weights.json"


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
        raw = json.loads((bundle / _FILE).read_text())
        return WeightsNote(str(raw["source"]), str(raw["own"]), str(raw["plain"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_note(bundle: Path, note: WeightsNote) -> None:
    """Write ``note`` into ``bundle``, unless it is there, or the bundle may not be written."""
    if read_note(bundle) == note:
        return
    try:
        write_durably(bundle / _FILE, json.dumps(asdict(note)) + "\n", alone=False)
    except OSError:
        return
