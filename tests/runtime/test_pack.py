"""Packing: a bundle holds, bit for bit, what transformers loads; once, whole, within its budget, and resumable."""

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ctypes import CDLL, POINTER, addressof, c_char, c_size_t, c_ubyte, c_void_p
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from penstock.runtime import convert
from penstock.runtime.pack import pack, pack_model
from penstock.tiering.errors import BudgetTooSmall, CheckpointError, ConfigError, FlashFull
from penstock.tiering.progress import Quiet
from penstock.tiering.store import writer
from penstock.tiering.store.reader import Bundle
from penstock.tiering.units import MiB

from ..bundles import tensors_of
from ..tiny_models import EXPERT_NAMES, NAMES, save_tiny, tiny_config

CHILD = Path(__file__).with_name("pack_child.py")


def packed(source: Path, store: Path, **options: object) -> Bundle:
    return pack(source, **{"store": store, "host_memory": 32 * MiB} | options)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal(bundle: Bundle, source: Path, **options: object) -> None:
    """The bundle has exactly the weights that transformers loads from ``source``."""
    expected = AutoModelForCausalLM.from_pretrained(source, **options).state_dict()
    found = tensors_of(bundle)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


# --- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_equals_what_transformers_loads(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", dtype)
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.dtype == str(dtype).removeprefix("torch.")
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_shards_make_the_same_weights(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 3
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")]
)
def test_weights_are_cast_as_transformers_does(name: str, stored: str, wanted: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", getattr(torch, stored))
    dtype = getattr(torch, wanted)
    with packed(source, tmp_path / "store", dtype=dtype) as bundle:
        assert_equal(bundle, source, dtype=dtype)


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_experts_that_are_fused_already_are_sliced(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    fused = AutoModelForCausalLM.from_pretrained(source).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in fused.items()}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_converted_alone_or_together_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    alone: list[int | None] = []
    real = convert.Group.convert

    def watch(self: convert.Group, model: object, load: object, expert: int | None = None) -> object:
        alone.append(expert if self.by_expert else None)
        return real(self, model, load, expert)  # type: ignore[arg-type]

    monkeypatch.setattr(convert.Group, "convert", watch)
    packed(source, tmp_path / "one").close()
    assert set(alone) == set(range(8))
    alone.clear()
    monkeypatch.setattr(convert, "_separable", lambda *_: False)
    packed(source, tmp_path / "all").close()
    assert alone == [None] * (2 * 2), "each of two stacked weights of two layers, once"
    assert [*files_of(tmp_path / "one").values()][1:] == [*files_of(tmp_path / "all").values()][1:]


def test_the_base_models_weights_fit_too(tmp_path: Path) -> None:
    source = save_tiny("qwen3", tmp_path / "checkpoint", tie_word_embeddings=True)
    bare = {k.removeprefix("model."): v for k, v in load_file(source / "model.safetensors").items()}
    save_file(bare | {"left.over": torch.ones(3)}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert_equal(bundle, source)


def test_tied_weights_may_be_stored_under_either_name(tmp_path: Path) -> None:
    source = save_tiny("qwen2", tmp_path / "checkpoint", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        assert_equal(bundle, source)
    save_file(weights | {"model.embed_tokens.weight": weights["lm_head.weight"].clone()}, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied
        assert_equal(bundle, source)


def test_weights_that_differ_are_not_tied(tmp_path: Path) -> None:
    source = save_tiny("qwen2", tmp_path / "checkpoint", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, source / "model.safetensors")
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.manifest.tied == {}
        assert_equal(bundle, source)
        assert json.loads((bundle.model_folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_weight_that_may_be_absent_gets_its_initial_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    source = save_tiny("llama", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors")
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"model\.norm"])
    with packed(source, tmp_path / "store") as bundle:
        assert torch.equal(tensors_of(bundle)["model.norm.weight"], torch.ones(64))
        assert_equal(bundle, source)


def test_the_model_folder_has_what_builds_the_model(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("x")
    (source / "notes.txt").write_text("not ours")
    (source / "own.py").write_text("not ours")
    with packed(source, tmp_path / "store") as bundle:
        there = files_of(bundle.model_folder)
        assert there.keys() == {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
        assert all(data == (source / name).read_bytes() for name, data in there.items())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe", "gpt_oss"])
def test_a_model_in_memory_makes_a_bundle(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint", torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(source)
    with pack_model(model, store=tmp_path / "store") as bundle:
        assert_equal(bundle, source)
        assert AutoModelForCausalLM.from_pretrained(source, config=bundle.model_folder).config == model.config
        with pack_model(model, store=tmp_path / "store") as again:
            assert again.folder == bundle.folder
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pack_model(model, store=tmp_path / "store") as other:
        assert other.folder != bundle.folder


def test_a_model_without_weights_makes_none(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(CheckpointError, match="meta device"):
        pack_model(model, store=tmp_path / "store")


# --- once, whole, resumable -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_packed_once(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    store = tmp_path / "store"
    labels: list[str] = []

    class Notes(Quiet):
        def start(self, label: str, total_bytes: int) -> None:
            labels.append(label)

    first = packed(source, store, progress=Notes())
    assert labels == ["checking the checkpoint", "packing"]
    (source.parent / "moved").mkdir()
    second = packed(source, store, progress=Notes())
    assert labels == ["checking the checkpoint", "packing"]
    assert second.folder == first.folder
    moved = source.rename(source.parent / "moved" / "checkpoint")
    assert packed(moved, store, progress=Notes()).folder == first.folder
    assert labels == ["checking the checkpoint", "packing", "checking the checkpoint"]
    assert packed(moved, store, dtype=torch.bfloat16).folder != first.folder
    assert store.stat().st_mode & 0o777 == 0o700
    assert first.folder.name.startswith("llama-")


def test_other_weights_are_another_bundle(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    first = packed(source, tmp_path / "store")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, source / "model.safetensors")
    second = packed(source, tmp_path / "store")
    assert second.folder != first.folder
    assert_equal(second, source)


def child(*arguments: object) -> str:
    return subprocess.run(
        [sys.executable, CHILD, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True, timeout=100
    ).stdout


def test_a_killed_packing_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    expected = files_of(packed(source, tmp_path / "whole").folder)
    points = ["0", "2", "9", "17", "25", "manifest", "rename"]
    child("kill", source, tmp_path, *points)
    left = {point: sum(path.stat().st_size for path in (tmp_path / point).rglob("*.bin")) for point in points}
    assert len(set(left.values())) > 3, "the kills came at different stages"
    for point in points:
        assert not list((tmp_path / point).glob("*[0-9a-f]/manifest.json"))
        bundle = packed(source, tmp_path / point)
        assert files_of(bundle.folder) == expected, point
        assert not list((tmp_path / point).glob("*.partial"))


@pytest.mark.parametrize("at", [1, 20])
def test_control_c_says_how_to_go_on(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT", 40_000)
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    expected = files_of(packed(source, tmp_path / "whole").folder)
    left = [at]

    class Interrupt(Quiet):
        def advance(self, n: int) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

    store = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt) as caught:
        packed(source, store, progress=Interrupt())
    if at > 2:
        assert "run the same again to go on" in str(caught.value)
        assert list(store.glob("*.partial"))
    assert not list(store.glob("*/manifest.json"))
    assert files_of(packed(source, store).folder) == expected


def test_of_packings_at_once_one_writes(tmp_path: Path) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    assert child("together", source, tmp_path / "store", 3).split() == ["1"]
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.verify() == []
        assert_equal(bundle, source)


# --- budgets --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_drive(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "drive"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_drive_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path, small_drive: Path) -> None:
    source = save_tiny("qwen3_next", tmp_path / "checkpoint")
    with pytest.raises(FlashFull, match="its drive has"):
        packed(source, small_drive / "store")
    assert not list((small_drive / "store").glob("*.partial"))


def test_a_drive_that_fills_up_leaves_a_packing_to_go_on_with(
    tmp_path: Path, small_drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "COMMIT", 40_000)
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    expected = files_of(packed(source, tmp_path / "whole").folder)
    filler = small_drive / "filler"

    class FillUp(Quiet):
        left = 20

        def advance(self, n: int) -> None:
            self.left -= 1
            if self.left == 0:
                with open(filler, "wb", buffering=0) as file:
                    os.posix_fallocate(file.fileno(), 0, os.statvfs(small_drive).f_bavail * 4096)

    with pytest.raises(FlashFull, match="run the same again"):
        packed(source, small_drive / "store", progress=FillUp())
    filler.unlink()
    assert files_of(packed(source, small_drive / "store").folder) == expected


def test_the_limit_on_flash_holds_over_all_bundles(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    store = tmp_path / "store"
    with pytest.raises(FlashFull, match=r"\[memory\] flash"):
        packed(source, store, flash_limit=100_000)
    assert not list(store.glob("llama-*[!k]"))
    size = packed(source, store, flash_limit=600_000).manifest.total_bytes
    packed(source, store, flash_limit=100_000)  # it is there already
    with pytest.raises(FlashFull, match="holds"):
        packed(source, store, dtype=torch.float64, flash_limit=2 * size)


def test_a_conversion_that_exceeds_the_budget_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_separable", lambda *_: False)
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint", moe_intermediate_size=512, hidden_size=128)
    with pytest.raises(BudgetTooSmall, match=r"experts.gate_up_proj as a whole and needs (\d+\.\d+) MiB"):
        packed(source, tmp_path / "store", host_memory=1 * MiB)
    assert not list((tmp_path / "store").glob("*.partial"))
    packed(source, tmp_path / "store", host_memory=24 * MiB)


def test_memory_and_page_cache_stay_within_the_budget(tmp_path: Path) -> None:
    source = save_tiny(
        "qwen3_moe", tmp_path / "checkpoint", torch.bfloat16, vocab_size=32_000, hidden_size=512, num_experts=32,
        moe_intermediate_size=256, num_hidden_layers=4, max_shard_size="70MB",
    )  # fmt: skip
    weights = sorted(source.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) > 150 * MiB
    for path in weights:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # pages that wait to be written cannot be dropped
    store = tmp_path / "store"
    grown = int(child("memory", source, store, 32 * MiB))
    assert grown < (32 + 32) * MiB
    for path in [*weights, *store.glob("*/data-*.bin")]:
        assert cached(path) <= 8 * MiB, path


def cached(path: Path) -> int:
    """Bytes of the file that the page cache holds."""
    libc = CDLL(None)
    libc.mincore.argtypes = (c_void_p, c_size_t, POINTER(c_ubyte))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as mapped:
        pages = (c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        anchor = c_char.from_buffer(mapped)
        assert libc.mincore(addressof(anchor), len(mapped), pages) == 0
        del anchor
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


# --- checkpoints that do not fit their configuration ----------------------------------------------------------------


def test_missing_weights_are_named(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if "layers.1" not in key}
    save_file(kept, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.1\..* and 4 more, which the model needs"):
        packed(source, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.partial"))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_weights_of_another_size_are_named(name: str, tmp_path: Path) -> None:
    source = save_tiny(name, tmp_path / "checkpoint")
    config = json.loads((source / "config.json").read_text())
    config |= {"intermediate_size": 128, "moe_intermediate_size": 48}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp\..* has shape .* in the checkpoint, the model needs"):
        packed(source, tmp_path / "store")


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj"):
        packed(source, tmp_path / "store")


def test_an_unknown_weights_format_is_refused(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="as-is"):
        packed(source, tmp_path / "store", codec="int3")
    assert not (tmp_path / "store").exists()
