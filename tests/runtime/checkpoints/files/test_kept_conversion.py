"""A packed GGUF file is not converted again, and what differs in anything is."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import penstock
from penstock.runtime.checkpoints.files import gguf_file, kept_conversion
from penstock.runtime.checkpoints.files.digest import digest_files, known_digest
from penstock.runtime.checkpoints.files.kept_conversion import find_kept, is_kept, note_kept
from penstock.runtime.checkpoints.gguf_source import GgufSource
from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import CheckpointError
from tests.support.gguf_files import mixed, write

NOTE = "converted.json"
TEXT = "abc def"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", "llama", mixed, vocabulary="gpt2")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def bundle(file: Path, store: Path) -> Path:
    """The file, packed."""
    with pack(file, store=store) as packed:
        return packed.folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose configuration is converted from now on."""
    found: list[Path] = []
    real = gguf_file.read_gguf_config

    def note(path: Path, header: object) -> object:
        found.append(path)
        return real(path, header)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf_file, "read_gguf_config", note)
    return found


def test_a_packed_file_is_not_converted_again(file: Path, store: Path, bundle: Path, converted: list[Path]) -> None:
    fresh = GgufSource.open(file)
    assert converted == [file]
    kept = GgufSource.open(file, store)
    assert (kept.folder, kept.kept) == (bundle / "model", bundle / "model")
    assert kept.tokenizer()(TEXT)["input_ids"] == fresh.tokenizer()(TEXT)["input_ids"]
    place = {"_name_or_path": None}
    assert kept.config.to_dict() | place == fresh.config.to_dict() | place
    with pack(file, store=store) as again:
        assert again.folder == bundle
    assert converted == [file]


def test_the_model_computes_the_same(file: Path, store: Path, converted: list[Path]) -> None:
    def logits() -> torch.Tensor:
        with penstock.load(file, store=store) as model, torch.inference_mode():
            return model(torch.arange(9)[None]).logits.clone()

    first = logits()
    assert torch.equal(logits(), first)
    assert converted == [file]


def _change_config(bundle: Path) -> None:
    path = bundle / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))


def _add_file(bundle: Path) -> None:
    (bundle / "model" / "added_tokens.json").write_text('{"zz": 5}')


def _other_version(bundle: Path) -> None:
    note = json.loads((bundle / NOTE).read_text())
    (bundle / NOTE).write_text(json.dumps(note | {"by": "transformers 4.0.0, form 1"}))


def _other_source(bundle: Path) -> None:
    note = json.loads((bundle / NOTE).read_text())
    (bundle / NOTE).write_text(json.dumps(note | {"source": "0" * 64}))


def _link(bundle: Path) -> None:
    path = bundle / "model" / "config.json"
    path.rename(bundle / "elsewhere.json")
    path.symlink_to(bundle / "elsewhere.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: (bundle / NOTE).unlink(),  # packed by a penstock that kept none
        _change_config,
        _add_file,
        _other_version,
        _other_source,
        _link,
        lambda bundle: (bundle / "model" / "tokenizer.json").unlink(),
        lambda bundle: (bundle / "model" / "sub").mkdir(),
        *(lambda bundle, raw=raw: (bundle / NOTE).write_bytes(raw) for raw in (b"", b"[]", b'{"a":1}', b"[" * 100_000)),
    ],
)
def test_what_differs_is_converted_again(
    file: Path, store: Path, bundle: Path, converted: list[Path], change: Callable[[Path], object]
) -> None:
    eps = GgufSource.open(file, store).config.rms_norm_eps
    change(bundle)
    source = GgufSource.open(file, store)
    assert (source.kept, converted) == (None, [file])
    assert source.config.rms_norm_eps == eps
    assert source.tokenizer()(TEXT)["input_ids"]


def test_packing_mends_what_is_kept(file: Path, store: Path, bundle: Path) -> None:
    wanted = (bundle / "model" / "config.json").read_text()
    for change in (_change_config, lambda bundle: (bundle / NOTE).unlink()):
        change(bundle)
        pack(file, store=store).close()
        assert (bundle / "model" / "config.json").read_text() == wanted
        assert find_kept(store, file) == bundle / "model"


def test_a_store_that_may_not_be_written_is_used_as_it_is(
    file: Path, store: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / NOTE).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "not here")

    monkeypatch.setattr(kept_conversion, "write_durably", refuse)
    pack(file, store=store).close()
    assert find_kept(store, file) is None


def test_another_file_at_the_same_place_is_noticed(file: Path, store: Path, bundle: Path) -> None:
    write(file, "qwen3moe", mixed, vocabulary="llama")
    source = GgufSource.open(file, store)
    assert (source.kept, source.config.model_type) == (None, "qwen3_moe")


def test_a_touched_file_is_the_same_once_it_is_hashed(file: Path, store: Path, bundle: Path) -> None:
    os.utime(file, ns=(1, 1))
    assert find_kept(store, file) is None
    pack(file, store=store).close()
    assert find_kept(store, file) == bundle / "model"


def test_a_file_is_not_hashed_to_know_it(file: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.mkdir()
    assert known_digest([file], store) is None
    digest = digest_files([file], store)
    monkeypatch.setattr("penstock.runtime.checkpoints.files.digest._digest", None)
    assert known_digest([file], store) == digest
    os.utime(file, ns=(1, 1))
    assert known_digest([file], store) is None
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        known_digest([file], store)


def test_a_tokenizer_that_is_another_when_it_is_read_back_is_converted_each_time(tmp_path: Path, store: Path) -> None:
    """The class that transformers takes for this model has a beginning of its own for each text, once it is saved."""
    file = write(tmp_path / "model.gguf", "qwen3moe", mixed, vocabulary="llama")
    wanted = GgufSource.open(file).tokenizer()(TEXT)["input_ids"]
    with pack(file, store=store) as packed:
        assert AutoTokenizer.from_pretrained(packed.model_folder)(TEXT)["input_ids"] != wanted
        assert not (packed.folder / NOTE).exists()
    assert GgufSource.open(file, store).tokenizer()(TEXT)["input_ids"] == wanted


def test_a_configuration_that_cannot_be_read_is_converted_again(file: Path, store: Path, bundle: Path) -> None:
    (bundle / "model" / "config.json").write_text("{}")
    digest = known_digest([file], store)
    assert digest is not None
    note_kept(bundle, digest)
    assert is_kept(bundle, digest)
    assert GgufSource.open(file, store).config.model_type == "llama"
