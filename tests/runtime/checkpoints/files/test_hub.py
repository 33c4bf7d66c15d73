"""What is fetched of a repository on the hub: what is read, of one commit, and nothing else."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import penstock
from penstock.runtime.checkpoints.checkpoint import Checkpoint
from penstock.tiering.errors import CheckpointError
from tests.support.tiny_models import save_tiny

UNREAD = (
    "pytorch_model.bin", "model.pt", "consolidated.00.pth", "consolidated.safetensors", "model.fp16.safetensors",
    "original/model.safetensors", "original/params.json", "original/tokenizer.model", "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors", "adapter_model.safetensors", "onnx/model.onnx", "model-q4_0.gguf",
    "tf_model.h5", "README.md", "openvino/config.json",
)  # fmt: skip
READ = ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "preprocessor_config.json",
        "spiece.model", "qwen.tiktoken")  # fmt: skip


class Hub:
    """A repository, and what was asked of it; stands for ``snapshot_download``."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.folder = repository, cache / ("0123456789" * 4)
        self.revisions: list[str | None] = []
        for name in (*UNREAD, *READ, "modeling_own.py"):
            (repository / name).parent.mkdir(exist_ok=True)
            (repository / name).write_text("{}")

    def download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        tqdm_class: object,
        local_files_only: bool,
        ignore_patterns: list[str] | None = None,
    ) -> str:
        assert (name, local_files_only) == ("someone/model", False)
        self.revisions.append(revision)
        for path in self.repository.rglob("*"):
            own = str(path.relative_to(self.repository))
            wanted = any(fnmatch(own, each) for each in allow_patterns)
            if path.is_file() and wanted and not any(fnmatch(own, each) for each in ignore_patterns or ()):
                (self.folder / own).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.folder / own)
        return str(self.folder)

    @property
    def fetched(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(**options: Any) -> Hub:
        made = Hub(save_tiny("llama", tmp_path / "repository", **options), tmp_path)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
        monkeypatch.setattr("penstock.runtime.checkpoints.files.hub.can_reach_hub", lambda: True)
        return made

    return make


def test_what_is_read_is_fetched_and_nothing_else(hub: Callable[..., Hub]) -> None:
    there = hub()
    assert Checkpoint.open("someone/model", revision="v2").folder == there.folder
    assert there.fetched == {"config.json", "generation_config.json", "model.safetensors", *READ}
    first, *others = there.revisions
    assert first == "v2"
    assert set(others) == {there.folder.name}, "one commit, though the branch may move meanwhile"


def test_a_model_is_called_as_on_the_hub(hub: Callable[..., Hub], tmp_path: Path) -> None:
    hub()
    with penstock.load("someone/model", store=tmp_path / "store", host_memory="1GiB") as model:
        assert model.config.name_or_path == model.name_or_path == "someone/model"


def test_shards_are_those_that_the_index_names(hub: Callable[..., Hub]) -> None:
    there = hub(max_shard_size="100KB")
    (there.repository / "model-00009-of-00009.safetensors").write_text("of another time")
    opened = Checkpoint.open("someone/model")
    assert len(opened.files) > 1
    weights = {name for name in there.fetched if name.endswith(".safetensors")}
    assert weights == {path.name for path in opened.files}


def test_code_is_fetched_where_it_is_trusted(hub: Callable[..., Hub]) -> None:
    there = hub()
    Checkpoint.open("someone/model")
    assert "modeling_own.py" not in there.fetched
    Checkpoint.open("someone/model", trust_remote_code=True)
    assert "modeling_own.py" in there.fetched


def test_a_repository_without_safetensors(hub: Callable[..., Hub]) -> None:
    there = hub()
    (there.repository / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it has no model\.safetensors"):
        Checkpoint.open("someone/model")


def test_neither_pickle_nor_code_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_tiny("llama", tmp_path / "checkpoint")
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert Checkpoint.open("someone/model", revision="v2").folder == checkpoint
    assert (asked["name"], asked["revision"]) == ("someone/model", "v2")
    files = ("pytorch_model.bin", "model.pt", "modeling_own.py", "consolidated.00.pth")
    assert not any(fnmatch(file, pattern) for file in files for pattern in asked["allow_patterns"])
    Checkpoint.open("someone/model", trust_remote_code=True)
    assert "*.py" in asked["allow_patterns"]
