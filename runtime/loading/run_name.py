"""The name under which runs of a packed model are kept: plans look there for what they taught."""

from pathlib import Path

from ...tiering.store.bundle.manifest import Manifest
from ...tiering.store.bundle.stripes import drive_under
from ..config.config import Config
from ..machine.drive_speeds import existing
from ..machine.runs_file import name_of


def run_name(bundle: Path, manifest: Manifest, settings: Config) -> str:
    """Name ``bundle`` with all that its speed depends on besides host memory: its content and drives, and settings."""
    drives = [drive_under(existing(place)) for place in manifest.places(bundle)]
    content = (manifest.checkpoint, manifest.codec, manifest.dtype)
    return name_of((*content, *drives, settings.weights.quality, settings.experts, settings.io))
