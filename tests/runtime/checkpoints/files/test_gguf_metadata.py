"""What a GGUF file's header says is what transformers reads of the file, and transformers does not read it again."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import tensor_mapping
from transformers import AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.integrations.gguf import reader

from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.files import gguf_metadata
from penstock.runtime.checkpoints.files.gguf_file import GgufFile
from penstock.runtime.checkpoints.files.gguf_header import parse_gguf_header
from penstock.runtime.checkpoints.files.gguf_metadata import header_given, read_metadata
from penstock.runtime.checkpoints.gguf_weights import GgufWeights
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.tiering.errors import CheckpointError
from tests.support.gguf_files import VOCABULARY, mixed, write

STRINGS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
TEXTS = ["abc def", " d ab  zz", "</s>x<s>", "défaut Ω", ""]


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that readers of transformers and of the gguf package open from now on."""
    opened: list[str] = []
    mapped, real = reader._mapped, gguf.GGUFReader

    def note(path: Any) -> Any:
        opened.append(Path(path).name)
        return mapped(path)

    def note_reader(path: Any) -> Any:
        opened.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(reader, "_mapped", note)
    monkeypatch.setattr(gguf, "GGUFReader", note_reader)
    return opened


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("strings", [(), STRINGS], ids=["counted", "read"])
def test_metadata_are_those_of_transformers(tmp_path: Path, kind: str, strings: tuple[str, ...]) -> None:
    path = write(tmp_path / "model.gguf", "llama", mixed, vocabulary=kind)
    ours = read_metadata(path, parse_gguf_header(path), strings)
    theirs, _ = reader.read_gguf_metadata(str(path), strings)
    assert ours == theirs
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_tokenizer_is_transformers_own(tmp_path: Path, kind: str, architecture: str, unread: list[str]) -> None:
    path = write(tmp_path / "model.gguf", architecture, mixed, vocabulary=kind)
    ours = GgufFile.open(path).tokenizer
    assert path.name not in unread
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert path.name in unread
    assert len(ours) == len(theirs) >= VOCABULARY
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        tokenizer.save_pretrained(tmp_path / name)
    assert [ours(text)["input_ids"] for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "ours").iterdir())
    for file in files:
        assert (tmp_path / "ours" / file).read_text() == (tmp_path / "theirs" / file).read_text()


def test_other_files_are_read_as_ever_and_readers_are_put_back(tmp_path: Path, unread: list[str]) -> None:
    path = write(tmp_path / "model.gguf", "llama", mixed, vocabulary="gpt2")
    other = write(tmp_path / "other.gguf", "llama", mixed)
    readers = reader.read_gguf_metadata, modeling_gguf_pytorch_utils.load_gguf_checkpoint
    with header_given(path, parse_gguf_header(path), {"model_type": "ours"}):
        assert modeling_gguf_pytorch_utils.load_gguf_checkpoint(str(path))["config"] == {"model_type": "ours"}
        assert modeling_gguf_pytorch_utils.load_gguf_checkpoint(str(other))["config"]["model_type"] == "llama"
        assert "tokenizer.ggml.model" not in reader.read_gguf_metadata(str(other))[0]
        assert unread == ["other.gguf", "other.gguf"]
        assert modeling_gguf_pytorch_utils.load_gguf_checkpoint(str(path))["tokenizer"]["tokens"]
        assert unread[2:] == ["model.gguf"]
    assert (reader.read_gguf_metadata, modeling_gguf_pytorch_utils.load_gguf_checkpoint) == readers


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert GgufFile.open(write(tmp_path / "model.gguf", "llama", mixed)).tokenizer is None


@pytest.mark.parametrize("change", ["not utf-8", "too long", "the last is too long"])
def test_texts_that_are_none_are_refused(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "model.gguf", "llama", mixed, vocabulary="gpt2")
    file = GgufFile.open(path)
    merges = file.header.arrays["tokenizer.ggml.merges"]
    place, last = merges.offset, merges.offset + merges.length - 8 - len("de f")
    raw = bytearray(path.read_bytes())
    if change == "not utf-8":
        raw[place + 8 : place + 9] = b"\xff"
    elif change == "too long":  # as where another process has replaced the content since
        raw[place : place + 8] = (1 << 40).to_bytes(8, "little")
    else:
        raw[last : last + 8] = (5).to_bytes(8, "little")
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.gguf is damaged: tokenizer\.ggml\.merges is no list of texts"):
        file.tokenizer  # noqa: B018


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "llama", mixed, vocabulary="gpt2")
    header = parse_gguf_header(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        gguf_metadata.read_metadata(path, header, STRINGS)


def test_the_table_of_names_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GgufFile.open(write(tmp_path / "model.gguf", "llama", mixed))
    model = build_meta_model(file.config, file.dtype())
    made: list[int] = []
    real = tensor_mapping.TensorNameMap.__init__

    def count(self: Any, arch: Any, blocks: int) -> None:
        made.append(blocks)
        real(self, arch, blocks)

    monkeypatch.setattr(tensor_mapping.TensorNameMap, "__init__", count)
    GgufWeights(model, file, describe(model)).close()
    assert made == [2]
