"""Open the files of a model by its name: a packed bundle, a checkpoint folder, a GGUF file, or a hub id."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...tiering.errors import BundleError, CheckpointError
from ...tiering.store.bundle.folder import bundles_in
from ...tiering.store.bundle.manifest_file import read_manifest

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ..checkpoints.files.content import Content
    from ..checkpoints.source import Source
    from ..config.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Which ``model``: a folder, a GGUF file or a hub id; of which ``revision`` on the hub; whether Python code that
    comes with it may run."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """The small files of a model: where its configuration and tokenizer lie, and its configuration."""

    folder: Path
    config: Any
    trust_remote_code: bool
    checkpoint: "Source | None" = None
    """The checkpoint, opened; None for a bundle."""

    @property
    def positions(self) -> int | None:
        """The most tokens of a sequence; None for models without a bound."""
        count = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return count if isinstance(count, int) and count > 0 else None


def is_bundle(model: str) -> bool:
    """Whether ``model`` is the folder of a packed bundle."""
    return (Path(model).expanduser() / "manifest.json").is_file()


def open_files(source: ModelSource, store: Path) -> OpenedModel:
    """The small files of a model that is or will be packed in ``store``; a hub id is downloaded first, weights too.
    Raises CheckpointError."""
    if is_bundle(source.model):
        folder = Path(source.model).expanduser() / "model"
        return OpenedModel(folder, read_config(str(folder), source), source.trust_remote_code)
    checkpoint = open_checkpoint(source, store)
    return OpenedModel(checkpoint.folder, checkpoint.config, source.trust_remote_code, checkpoint)


def open_checkpoint(source: ModelSource, store: Path) -> "Source":
    """The checkpoint, or GGUF file, with every file of it looked at; ``store`` as for ``open_files``. Raises
    CheckpointError."""
    from ..checkpoints.open import open_source

    folder = Path(source.model).expanduser()
    if any(folder.glob("data-*.bin")):
        raise BundleError(f"{folder} has data files but no manifest.json: it is no complete bundle; pack again")
    trust = source.trust_remote_code
    return open_source(source.model, store=store, revision=source.revision, trust_remote_code=trust)


def read_config(place: str, source: ModelSource) -> Any:
    """transformers' configuration of a model in a folder or on the hub, without its weights. Raises CheckpointError."""
    from transformers import AutoConfig, PretrainedConfig

    from ..checkpoints.files.bounds import WITHOUT_FILES, absurd
    from ..checkpoints.files.hub import UNREACHABLE, can_reach_hub
    from ..checkpoints.files.small_files import check_small_files

    is_folder = Path(place).is_dir()
    options: dict[str, Any] = {"revision": source.revision, "local_files_only": is_folder or not can_reach_hub()}
    try:
        if is_folder:
            check_small_files(Path(place), WITHOUT_FILES)
        elif what := absurd(PretrainedConfig.get_config_dict(place, **options)[0], WITHOUT_FILES):
            raise ValueError(what)
        return AutoConfig.from_pretrained(place, trust_remote_code=source.trust_remote_code, **options)
    except CheckpointError:
        raise
    except Exception as error:  # configurations check themselves, each in its own way
        where = place if is_folder else f"{place}: there is no such folder, and nothing fetched from the hub"
        said = str(error).strip().partition("\n")[0]
        if options["local_files_only"] and not is_folder:
            said = UNREACHABLE
        raise CheckpointError(f"no model configuration in {where} ({said})") from error


def read_tokenizer(opened: OpenedModel, purpose: str) -> Any:
    """transformers' tokenizer of a model. Raises CheckpointError, which says for what ``purpose`` it is needed."""
    from transformers import AutoTokenizer

    from ..checkpoints.files.failures import is_failure, reason

    try:
        if opened.checkpoint is None:
            tokenizer = AutoTokenizer.from_pretrained(opened.folder, trust_remote_code=opened.trust_remote_code)
        else:
            tokenizer = opened.checkpoint.tokenizer()
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes one up for some families
            raise ValueError("it has no vocabulary")
        return tokenizer
    except BaseException as error:
        if not is_failure(error):
            raise
        raise CheckpointError(
            f"{opened.folder} has no tokenizer that transformers can read ({reason(error)}); {purpose}"
        ) from error


def find_bundle(source: ModelSource, config: "Config", progress: "Progress | None" = None) -> Path:
    """The folder of the bundle that a model is or was packed into. Raises CheckpointError and BundleError."""
    folder = Path(source.model).expanduser()
    if is_bundle(source.model):
        return folder
    store = config.store.path
    # Most are known by their files. What is wrong with others, opening them says.
    found = _find_by_files(source, store, progress) or find_bundles(
        open_checkpoint(source, store), store, bundles_in(store), progress
    )
    if not found:
        raise BundleError(f"{source.model} is not packed in {store}; run: penstock pack {source.model}")
    if len(found) > 1:
        from ..packing.rules import named_rules

        rules = [str(each) for each in named_rules(config.weights)]
        found = [folder for folder in found if read_manifest(folder).codec in rules] or found
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise BundleError(f"{source.model} is packed more than once; name one of the bundles: {names}")
    return found[0]


def _find_by_files(source: ModelSource, store: Path, progress: "Progress | None") -> list[Path]:
    """The bundles of a folder or GGUF file, without a look at what is in its weights, and without torch; none where
    that does not tell."""
    from ..checkpoints.files.content import find_content

    path = Path(source.model).expanduser()
    if not path.exists():
        return []
    try:
        content = find_content(path, trust_remote_code=source.trust_remote_code)
        return find_bundles(content, store, bundles_in(store), progress)
    except CheckpointError:
        return []


def find_bundles(
    checkpoint: "Source | Content", store: Path, among: list[Path], progress: "Progress | None" = None
) -> list[Path]:
    """Those of the bundles ``among`` that hold ``checkpoint``'s content; it is read for that if penstock sees it the
    first time."""
    if not among:
        return []
    from ..checkpoints.files.digest import digest_files

    digest = digest_files(checkpoint.content, store, progress)
    weights = checkpoint.weights_digest(store, progress)
    return [folder for folder in among if _holds(folder, digest)] or [
        folder for folder in among if _has_weights(folder, weights)
    ]


def _has_weights(folder: Path, weights: str | None) -> bool:
    """Whether the bundle in ``folder`` is of a checkpoint with these weights, whose small files were others."""
    from ..checkpoints.weights_note import read_note

    note = read_note(folder)
    return note is not None and note.source == weights


def _holds(folder: Path, digest: str) -> bool:
    try:
        return read_manifest(folder).checkpoint == digest
    except BundleError:  # a damaged neighbour is not this model's business
        return False
