"""Packing goes wrong well: a bundle is made once, whole, within its budgets, and taken up where it was left."""

import mmap
import os
import signal
from ctypes import CDLL, POINTER, addressof, c_char, c_size_t, c_ubyte, c_void_p
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.kernels.formats.lossless import Lossless
from penstock.runtime.checkpoints import convert
from penstock.runtime.packing.arrange.formats import Rules
from penstock.tiering.errors import BudgetTooSmall, FlashFull
from penstock.tiering.progress import Quiet
from penstock.tiering.store.bundle import writer
from penstock.tiering.store.bundle.folder import PREFIXES
from penstock.tiering.store.bundle.journal import LENGTHS
from penstock.tiering.units import MiB
from tests.support.bundles import assert_equal, files_of, packed
from tests.support.packing import FillUp, child
from tests.support.tiny_models import save_tiny

# --- once, whole, resumable ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("stage", "at", "most"),
    [("measuring", 6, 1.9), ("packing", 1, 1.0), ("packing", 20, 0.7)],
    ids=["measuring", "first block", "packing"],
)
def test_an_interrupted_lossless_packing_encodes_no_matrix_anew(
    stage: str, at: int, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``most``: how often a matrix is measured or encoded on average when packing goes on; twice if it had not begun.
    The last line that was kept of what was measured is torn, as after a crash."""
    monkeypatch.setattr(writer, "COMMIT", 40_000)
    rules, source = Rules("lossless"), save_tiny("qwen3_moe", tmp_path / "checkpoint", torch.bfloat16)
    encoded = list[int]()
    for name in ("find_lengths", "encode"):
        method = getattr(Lossless, name)
        monkeypatch.setattr(Lossless, name, lambda *given, method=method: encoded.append(1) or method(*given))
    expected = files_of(packed(source, tmp_path / "whole", rules=rules).folder)
    matrices = len(encoded) // 2
    encoded.clear()

    class Interrupt(Quiet):
        left = 0

        def start(self, label: str, total_bytes: int) -> None:
            self.left = at if label == stage else 0

        def advance(self, n: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(source, tmp_path / "store", rules=rules, progress=Interrupt())
    (kept,) = (tmp_path / "store").glob(f"*.partial/{LENGTHS}")
    kept.write_bytes(kept.read_bytes()[:-3])
    encoded.clear()
    assert files_of(packed(source, tmp_path / "store", rules=rules).folder) == expected
    assert 0 < len(encoded) - 1 <= most * matrices, "but for the one whose line is torn"


def test_of_packings_at_once_one_writes(tmp_path: Path) -> None:
    source = save_tiny("qwen3_moe", tmp_path / "checkpoint")
    assert child("together", source, tmp_path / "store", 3).split() == ["1"]
    with packed(source, tmp_path / "store") as bundle:
        assert bundle.verify() == []
        assert_equal(bundle, source)


# --- budgets ---------------------------------------------------------------------------------------------------------


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
    fill_up = FillUp(small_drive, 20)
    with pytest.raises(FlashFull, match="run the same again"):
        packed(source, small_drive / "store", progress=fill_up)
    fill_up.filler.unlink()
    assert files_of(packed(source, small_drive / "store").folder) == expected


def test_the_limit_on_flash_holds_over_all_bundles(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "checkpoint")
    store = tmp_path / "store"
    with pytest.raises(FlashFull, match=r"\[memory\] flash"):
        packed(source, store, flash_limit=100_000)
    assert not list(store.glob("llama-*[!k]"))
    (store / PREFIXES).mkdir()
    (store / PREFIXES / "kept.kv").write_bytes(bytes(700_000))  # prompts have a quota of their own
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
    grown = int(child("memory", source, store, 32 * MiB, "as-is"))
    assert grown < (32 + 32) * MiB
    for path in [*weights, *store.glob("*/*/data-*.bin")]:
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
