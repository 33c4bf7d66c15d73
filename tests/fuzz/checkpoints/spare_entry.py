"""An index that names a tensor which no file has."""

import json
from pathlib import Path

SPARE = "mtp.fc.weight"


def add_spare_entry(folder: Path) -> None:
    """Name a tensor in the index of ``folder`` that its file does not have, and no model needs."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return  # it is one file
    found = json.loads(index.read_text())
    found["weight_map"][SPARE] = next(iter(found["weight_map"].values()))
    index.write_text(json.dumps(found))
