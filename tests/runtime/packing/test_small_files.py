"""Files that are not weights are the checkpoint's on every load, and the bundle gets them."""

import json
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.checkpoints.files.model_files import refresh_model_folder, what_decides_weights
from penstock.runtime.cli.main import main
from tests.support.bundles import packed
from tests.support.more_quantised import float8
from tests.support.prompts import IDS
from tests.support.quantised_checkpoints import save_pair
from tests.support.tiny_models import save_tiny

TEXTS = ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "tokenizer.json",
         "additional_chat_templates/tools.jinja")  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = save_tiny("llama", tmp_path / "source")
    for name in TEXTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"is": "old"}')
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def bundles(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.glob("*/manifest.json"))


def load(source: Path, store: Path) -> Any:
    return penstock.load(source, store=store, host_memory="8MiB")


def test_the_end_of_text_is_the_checkpoints(source: Path, tmp_path: Path) -> None:
    with load(source, tmp_path / "store") as model:
        free = model.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False, eos_token_id=[])
    change(source / "generation_config.json", eos_token_id=[2, free[0, len(IDS) + 2].item()], temperature=0.6)
    plain = AutoModelForCausalLM.from_pretrained(source)
    wanted = plain.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False)
    with load(source, tmp_path / "store") as model:
        assert model.generation_config.to_dict() == plain.generation_config.to_dict()
        assert torch.equal(model.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False), wanted)
        bundle = model.penstock.bundle
    with load(bundle, tmp_path / "store") as model:
        assert torch.equal(model.generate(torch.tensor([IDS]), max_new_tokens=8, do_sample=False), wanted)
    (source / "generation_config.json").unlink()
    plain = AutoModelForCausalLM.from_pretrained(source)
    for place in (source, bundle):
        with load(place, tmp_path / "store") as model:
            assert model.generation_config.eos_token_id == plain.generation_config.eos_token_id == 2


def test_every_small_file_is_the_checkpoints(source: Path, tmp_path: Path) -> None:
    with packed(source, tmp_path / "store") as bundle:
        manifest = (bundle.folder / "manifest.json").read_bytes()
    for name in TEXTS[1:]:
        (source / name).write_text('{"is": "new"}')
    (source / TEXTS[0]).unlink()
    with packed(source, tmp_path / "store") as bundle:
        assert {name for name in TEXTS if (bundle.model_folder / name).exists()} == set(TEXTS[1:])
        assert all((bundle.model_folder / name).read_text() == '{"is": "new"}' for name in TEXTS[1:])
        assert (bundle.folder / "manifest.json").read_bytes() == manifest
        assert not list(bundle.model_folder.rglob("*.tmp"))


def test_a_model_says_that_its_files_are_the_checkpoints(source: Path, tmp_path: Path) -> None:
    with load(source, tmp_path / "store") as model:
        assert model.config.name_or_path == model.name_or_path == str(source)
        bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path / "store") as model:
        assert model.config.name_or_path == model.name_or_path == str(bundle / "model")


def test_settings_that_have_nothing_to_do_with_weights_do_not_pack_again(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").unlink()
    packed(source, tmp_path / "store").close()
    change(source / "config.json", eos_token_id=7, transformers_version="9.9.9")
    with load(source, tmp_path / "store") as model:
        assert model.config.eos_token_id == model.generation_config.eos_token_id == 7
    (bundle,) = bundles(tmp_path / "store")
    assert json.loads((bundle / "model" / "config.json").read_text())["eos_token_id"] == 7
    assert main(["verify", str(source), "--store", str(tmp_path / "store")]) == 0


def test_settings_that_change_numbers_are_the_checkpoints(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "store").close()
    change(source / "config.json", rms_norm_eps=0.5, rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    wanted = AutoModelForCausalLM.from_pretrained(source)(torch.tensor([IDS])).logits
    with load(source, tmp_path / "store") as model:
        assert torch.equal(model(torch.tensor([IDS])).logits, wanted)


def test_a_bundle_packed_before_there_were_notes_is_used_and_gets_one(source: Path, tmp_path: Path) -> None:
    with packed(source, tmp_path / "store") as bundle:
        note = bundle.folder / "weights.json"
        text = note.read_text()
        note.unlink()
    packed(source, tmp_path / "store").close()
    assert note.read_text() == text
    note.write_text("{not json")
    packed(source, tmp_path / "store").close()
    assert note.read_text() == text


def test_other_weights_are_not_taken_for_these(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "store").close()
    other = save_tiny("llama", tmp_path / "other", bos_token_id=5)
    path = other / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    packed(other, tmp_path / "store").close()
    assert len(bundles(tmp_path / "store")) == 2


def test_what_decides_weights() -> None:
    config = {"hidden_size": 1, "eos_token_id": 2, "text_config": {"pad_token_id": 0, "num_layers": 3}}
    assert what_decides_weights(config) == {"hidden_size": 1, "text_config": {"num_layers": 3}}


def test_a_quantised_checkpoint_keeps_its_bundles_configuration(tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    source = save_pair(tmp_path, "llama", config, float8(".weight_scale")).quantised
    for eos in (2, 9):
        change(source / "config.json", eos_token_id=eos)
        with packed(source, tmp_path / "store") as bundle:
            described = json.loads((bundle.model_folder / "config.json").read_text())
        assert "quantization_config" not in described
        assert described["eos_token_id"] == eos
    assert len(bundles(tmp_path / "store")) == 1


def test_weights_that_are_not_tied_stay_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = save_tiny("qwen2", tmp_path / "source", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    wanted = AutoModelForCausalLM.from_pretrained(source)(torch.tensor([IDS])).logits
    for _ in range(2):
        with load(source, tmp_path / "store") as model:
            assert torch.equal(model(torch.tensor([IDS])).logits, wanted)
            assert not model.config.tie_word_embeddings
            bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path / "store") as model:
        assert torch.equal(model(torch.tensor([IDS])).logits, wanted)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield folder
    folder.chmod(stat.S_IRWXU)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_stays_as_it_is(unwritable: Path) -> None:
    assert not refresh_model_folder(unwritable, {"config.json": "new"})
    assert (unwritable / "config.json").read_text() == "old"


def test_a_folder_that_cannot_be_written_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert not refresh_model_folder(folder, {"config.json": "new"})
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("config.json", "old")]


def _read_all_the_time(folder: str, stop: Any, odd: Any) -> None:
    while not stop.is_set():
        text = (Path(folder) / "config.json").read_text()
        if text not in ("a" * 100_000, "b" * 100_000):
            odd.put(len(text))


def test_another_process_reads_the_old_file_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("a" * 100_000)
    spawn = multiprocessing.get_context("fork")
    stop, odd = spawn.Event(), spawn.Queue()
    reader = spawn.Process(target=_read_all_the_time, args=(str(folder), stop, odd))
    reader.start()
    for n in range(200):
        assert refresh_model_folder(folder, {"config.json": "ba"[n % 2] * 100_000})
    stop.set()
    reader.join(60)
    assert reader.exitcode == 0
    assert odd.empty()
