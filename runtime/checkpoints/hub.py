"""The folder of a checkpoint: as given, or fetched from the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

from ...tiering.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_PATTERNS = ("*.safetensors", "*.json", "tokenizer*", "vocab*", "merges*", "chat_template*", "*.model", "*.txt")


def find_folder(source: str | Path, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    """The folder ``source``, or the one that the hub's model of that id was fetched into. Raises CheckpointError."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of a checkpoint (config.json and *.safetensors)")
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"there is no folder {path}, and it is not a model's id on the Hugging Face hub either")
    return _download(source, revision, trust_remote_code, quiet)


def _download(name: str, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    """The folder with the hub's model ``name``; weights that are not safetensors are not fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class HubBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | ({"disable": True} if quiet else {}))  # type: ignore[no-untyped-call]

    patterns = [*_HUB_PATTERNS, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, tqdm_class=HubBar))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"there is no folder {name}, and no model of that name could be fetched from the Hugging Face hub: {reason}"
        ) from error
