"""The folder of a checkpoint: as given, or fetched from the Hugging Face hub."""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....tiering.errors import CheckpointError
from .json_file import read_object
from .weights_files import INDEX, SINGLE, check_link, read_index

PATIENCE = 5.0
"""Seconds for the hub to answer at all. Its own client tries again and again for half a minute."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIRST = ("config.json", INDEX, "additional_chat_templates/*.jinja")
"""What says which other files are needed, and what does not lie at the top."""
UNREACHABLE = "it cannot be reached, and nothing of that name was fetched before"
_SMALL = (
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "tokenizer*",
    "vocab*",
    "merges*",
    "chat_template*",
)
"""Small files at the top of a repository."""


def find_folder(source: str | Path, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    """The folder ``source``, or the one that the hub's model of that id was fetched into. Raises CheckpointError."""
    path = Path(source).expanduser()
    check_link(path)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder of a checkpoint (config.json and *.safetensors)")
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise CheckpointError(f"there is no folder {path}, and it is not a model's id on the Hugging Face hub either")
    return _download(source, revision, trust_remote_code, quiet)


def _download(name: str, revision: str | None, trust_remote_code: bool, quiet: bool) -> Path:
    """The folder with what is read of the hub's model ``name``: small files at its top, and the weights that
    transformers would take; nothing of other formats, precisions or adapters beside them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class HubBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | ({"disable": True} if quiet else {}))  # type: ignore[no-untyped-call]

    offline = not can_reach_hub()

    def fetch(patterns: Sequence[str], commit: str | None, **options: Any) -> Path:
        options |= {"allow_patterns": [*patterns], "tqdm_class": HubBar, "local_files_only": offline}
        found = snapshot_download(name, revision=commit, **options)
        return Path(found)

    try:
        return _fetch_all(fetch, revision, [*_SMALL, *(["*.py"] if trust_remote_code else [])])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = UNREACHABLE if offline else str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"there is no folder {name}, and no model of that name could be fetched from the Hugging Face hub: {reason}"
        ) from error


def can_reach_hub() -> bool:
    """Whether the hub answers, and may be asked."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever its client, a proxy or the resolver raise
        return False
    return True


def _fetch_all(fetch: Callable[..., Path], revision: str | None, small: Sequence[str]) -> Path:
    folder = fetch(_FIRST, revision)
    # What follows is of the same commit, whatever happens to the branch meanwhile.
    commit = folder.name if _COMMIT.fullmatch(folder.name) else revision
    single = _explicit(folder) or SINGLE
    folder = fetch([*small, glob.escape(single)], commit, ignore_patterns=["*/*"])
    index = folder / (single if single.endswith(".index.json") else INDEX)
    if index.is_file() and not (folder / SINGLE).is_file():
        fetch([glob.escape(shard) for shard in sorted(set(read_index(index).values()))], commit)
    return folder


def _explicit(folder: Path) -> str | None:
    """The file of weights that the configuration names, if it does."""
    try:
        named = read_object(folder / "config.json").get("transformers_weights")
    except CheckpointError:
        return None  # opening the folder says what is wrong
    return named if isinstance(named, str) else None
