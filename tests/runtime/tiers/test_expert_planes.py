"""Experts in planes: what is computed with all, with the first, and with as many as idle drives bring; what is read."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.engine.stats import Stats
from penstock.runtime.experts.experts import streamed_experts
from penstock.runtime.experts.fast import FastExperts
from penstock.runtime.packing.arrange.formats import Rules, choose_formats
from penstock.runtime.tiers.expert_planes import stacks, units
from penstock.tiering.errors import BundleCorrupt, BundleError, ReadError
from penstock.tiering.policy.prefetch.refinement import MOST_READ
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import BlockId, Extent
from tests.support.encoded_models import decoded, logits, transformers_own
from tests.support.engines import engine_of
from tests.support.tiny_models import save_tiny

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""
PLANES = {"nested": 2, "stacked": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-MoE whose experts take several pages. Its matrices are decoded for every product."""
    return saved(tmp_path_factory.mktemp("float32"), torch.float32)


@pytest.fixture(scope="module")
def small_floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The like, multiplied by as it is stored."""
    return saved(tmp_path_factory.mktemp("bfloat16"), torch.bfloat16)


def saved(folder: Path, dtype: torch.dtype) -> Path:
    return save_tiny("qwen3_moe", folder, dtype, hidden_size=128, moe_intermediate_size=128)


def load(folder: Path, store: Path, quality: str, name: str = "nested", **options: Any) -> PreTrainedModel:
    options = {"experts_prefetch": "off", "attn_implementation": "eager"} | options
    return penstock.load(folder, store=store, weights_format=name, weights_quality=quality, **options)


def coarse(folder: Path, name: str) -> PreTrainedModel:
    """transformers' model with the numbers that the first planes of its experts have, and int8's elsewhere."""
    model, original = decoded(transformers_own(folder), "int8"), transformers_own(folder)
    weights = dict(model.named_parameters())
    for tensor, choice in choose_formats(original, describe(original), Rules(name)).items():
        whole = original.get_parameter(tensor).data
        for expert, matrix in enumerate(whole if choice.format == name else ()):
            n, k = matrix.shape
            planes = FORMATS[name].encode([matrix], n, k)
            FORMATS[name].decode(planes[:1], n, k, slice(0, n), weights[tensor].data[expert])
    return model


def tight(folder: Path, store: Path, quality: str, name: str = "nested") -> int:
    """A budget with which some experts are in memory: a third of what all of them take with their residuals."""
    with load(folder, store, quality, name, host_memory="1GiB") as model:
        placement = model.penstock.placement
        manifest = engine_of(model).bundle.manifest
        experts = sum(block.extent.length for block in manifest.blocks if block.id.expert is not None)
        return placement.minimum + experts // 3


def away(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def settled(model: PreTrainedModel, rounds: int = 6) -> torch.Tensor:
    """Logits when some forwards have brought residuals; each waits for what is being read."""
    driver = engine_of(model).bridge._driver
    for _ in range(rounds):
        found = logits(model)
        with driver._lock:
            assert driver._idle.wait_for(lambda: not driver._flying, SOON)
    return found


def first_experts(model: PreTrainedModel, run: Callable[[PreTrainedModel], object]) -> torch.Tensor:
    """What the first layer's experts give for the last prompt of ``run``. In later layers others may be chosen."""
    found: list[torch.Tensor] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, out: found.append(out))
    run(model)
    hook.remove()
    return found[-2]  # after it comes a token


def adds_up(stats: Stats) -> bool:
    parts = stats.demand_bytes + stats.prefetch_bytes + stats.guess_bytes + stats.refine_bytes + stats.row_bytes
    return parts == stats.flash_bytes_read and sum(stats.products_by_planes.values()) == (
        stats.expert_hits + stats.expert_misses
    )


def trusted(model: PreTrainedModel) -> set[bool]:
    """The outcomes of trials of the fast way to compute experts."""
    experts = next(filter(None, map(streamed_experts, model.modules())))
    return set(experts.trust.values())


@pytest.mark.parametrize("name", PLANES)
def test_full_is_int8_and_base_is_the_first_plane(folder: Path, tmp_path: Path, name: str) -> None:
    fine, rough = logits(decoded(transformers_own(folder), "int8")), logits(coarse(folder, name))
    found: dict[str, torch.Tensor] = {}
    for quality, planes in (("full", PLANES[name]), ("base", 1)):
        for budget in (1 << 30, tight(folder, tmp_path, quality, name)):
            with load(folder, tmp_path, quality, name, host_memory=budget) as model:
                again = logits(model)
                stats = model.penstock.stats()
                assert trusted(model) == {True}
                engine_of(model).check_integrity()
            assert torch.equal(found.setdefault(quality, again), again), "whatever the budget"
            assert stats.products_by_planes == {planes: stats.expert_hits + stats.expert_misses}
            assert stats.refine_bytes == 0
            assert adds_up(stats)
    assert away(found["full"], fine) < 1e-5
    assert away(found["base"], rough) < 1e-5
    assert away(fine, rough) > 0.01


@pytest.mark.parametrize("name", PLANES)
def test_full_is_what_int8_is_bit_for_bit(folder: Path, tmp_path: Path, name: str) -> None:
    with load(folder, tmp_path, "full", name) as nested, load(folder, tmp_path, "full", "int8") as int8:
        assert torch.equal(logits(nested), logits(int8))


@pytest.mark.parametrize("name", PLANES)
def test_adaptive_lies_between_and_reads_less(folder: Path, tmp_path: Path, name: str) -> None:
    fine = first_experts(decoded(transformers_own(folder), "int8"), logits)
    errors: dict[str, float] = {}
    stats: dict[str, Stats] = {}
    for quality in ("full", "adaptive", "base"):
        budget = tight(folder, tmp_path, "full", name)
        with load(folder, tmp_path, quality, name, host_memory=budget) as model:
            errors[quality] = away(first_experts(model, settled), fine)
            stats[quality] = model.penstock.stats()
            assert trusted(model) == {True}
            engine_of(model).check_integrity()
            assert adds_up(stats[quality])
            blocks = engine_of(model).bundle.manifest.blocks
    assert errors["full"] < errors["adaptive"] <= errors["base"]
    counts = stats["adaptive"].products_by_planes
    assert counts[1] > 0
    assert sum(count for planes, count in counts.items() if planes > 1) > 0
    assert set(counts) <= set(range(1, PLANES[name] + 1))
    sizes = {kind: sum(b.extent.length for b in blocks if b.id.kind == kind) for kind in ("expert", "residual")}
    allowed = MOST_READ * (sizes["expert"] + sizes["residual"]) / sizes["expert"] - 1
    others = stats["adaptive"].flash_bytes_read - stats["adaptive"].refine_bytes
    assert 0 < stats["adaptive"].refine_bytes <= allowed * others
    assert stats["adaptive"].flash_bytes_read <= MOST_READ * stats["full"].flash_bytes_read
    assert stats["base"].refine_bytes == stats["full"].refine_bytes == 0


@pytest.mark.parametrize("name", PLANES)
def test_with_room_for_all_adaptive_ends_at_full(folder: Path, tmp_path: Path, name: str) -> None:
    with load(folder, tmp_path, "full", name, host_memory="1GiB") as model:
        fine = logits(model)
    with load(folder, tmp_path, "adaptive", name, host_memory="1GiB") as model:
        first = logits(model)
        settled(model, 10 * PLANES[name])  # a forward brings some, one after the other
        before = model.penstock.stats()
        assert torch.equal(logits(model), fine)
        after = model.penstock.stats()
        blocks = engine_of(model).bundle.manifest.blocks
        engine_of(model).check_integrity()
    assert not torch.equal(first, fine)
    assert after.flash_bytes_read == before.flash_bytes_read, "all that is used is here"
    assert after.refine_bytes <= sum(block.extent.length for block in blocks if block.id.kind == "residual")
    fewer = {planes: count for planes, count in after.products_by_planes.items() if planes < PLANES[name]}
    assert fewer == {planes: before.products_by_planes[planes] for planes in fewer}


def test_both_ways_of_a_trial_see_the_same_planes(
    small_floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though residuals come in between."""
    fast = FastExperts.run

    def then_wait(self: FastExperts, *args: torch.Tensor) -> torch.Tensor:
        out = fast(self, *args)
        driver = self._bridge._driver
        with driver._lock:
            assert driver._idle.wait_for(lambda: not driver._flying, SOON)
        return out

    monkeypatch.setattr(FastExperts, "run", then_wait)
    with load(small_floats, tmp_path, "adaptive", host_memory="1GiB") as model:
        logits(model)
        assert model.penstock.stats().refine_bytes > 0
        assert trusted(model) == {True}


# --- what cannot be read ---------------------------------------------------------------------------------------------


def residual_blocks(bundle: Bundle) -> list[Block]:
    return [block for block in bundle.manifest.blocks if block.id.kind == "residual"]


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A store with a bundle in which every residual is altered."""
    with load(folder, tmp_path, "base") as model:
        bundle = engine_of(model).bundle
        paths, blocks = bundle.paths, residual_blocks(bundle)
    for block in blocks:
        with open(paths[block.extent.file], "r+b") as file:
            file.seek(block.extent.offset + 64)
            byte = file.read(1)
            file.seek(block.extent.offset + 64)
            file.write(bytes([byte[0] ^ 1]))
    return tmp_path


@pytest.fixture
def unreadable(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A store whose drive reports an I/O error wherever a residual lies."""
    with load(folder, tmp_path, "base") as model:
        extents = [block.extent for block in residual_blocks(engine_of(model).bundle)]
    real = os.preadv

    def preadv(file: int, buffers: Any, offset: int, *flags: int) -> int:
        length = sum(map(len, buffers))
        if any(extent.offset < offset + length and offset < extent.end for extent in extents):
            raise OSError(5, "Input/output error")
        return real(file, buffers, offset, *flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        yield tmp_path


@pytest.mark.parametrize(("store", "error"), [("damaged", BundleCorrupt), ("unreadable", ReadError)])
def test_a_residual_that_cannot_be_read(
    folder: Path, request: pytest.FixtureRequest, store: str, error: type[Exception]
) -> None:
    """Full says what to do; adaptive computes without, and does not try it again and again; base does not notice."""
    place = request.getfixturevalue(store)
    options = {"host_memory": "1GiB", "io_backend": "threads"}
    with load(folder, place, "full", **options) as model, pytest.raises(error, match='weights_quality = "base"'):
        logits(model)
    with load(folder, place, "base", **options) as model:
        wanted = logits(model)
    with load(folder, place, "adaptive", **options) as model:
        assert torch.equal(settled(model), wanted)
        stats = model.penstock.stats()
        residuals = len(residual_blocks(engine_of(model).bundle))
        engine_of(model).check_integrity()
    assert 0 < stats.refine_failures <= residuals
    assert stats.products_by_planes == {1: stats.expert_hits + stats.expert_misses}


# --- what moves ------------------------------------------------------------------------------------------------------


def block(part: int, plane: int, offset: int, pages: int = 1) -> Block:
    expert = BlockId("expert", "m", part)
    return Block(expert.residual(plane) if plane else expert, Extent(0, offset * 4096, pages * 4096), "", ())


def test_what_is_read_together_is_one_block() -> None:
    blocks = [block(0, 0, 0, 2), block(0, 1, 2), block(0, 2, 3), block(1, 0, 4)]
    assert units(blocks, "adaptive") == tuple(blocks)
    assert units(blocks, "base") == (blocks[0], blocks[3])
    assert [(unit.id, unit.extent) for unit in units(blocks, "full")] == [
        (BlockId("expert", "m", 0), Extent(0, 0, 4 * 4096)),
        (BlockId("expert", "m", 1), Extent(0, 4 * 4096, 4096)),
    ]
    assert [[part.id for part in stack] for stack in stacks(blocks)] == [[b.id for b in blocks[:3]], [blocks[3].id]]


def test_a_residual_elsewhere_is_said() -> None:
    with pytest.raises(BundleError, match="pack again"):
        units([block(0, 0, 0), block(0, 1, 5)], "full")


def test_residuals_go_to_the_drive_of_their_expert(folder: Path, tmp_path: Path) -> None:
    with load(folder, tmp_path / "store", "full", store_stripes=[str(tmp_path / "other")]) as model:
        manifest = engine_of(model).bundle.manifest
        found = logits(model)
    assert len(manifest.drives) == 2
    for stack in stacks(manifest.blocks):
        assert len({manifest.drive_of(each) for each in stack}) == 1
    assert {manifest.drive_of(stack[0]) for stack in stacks(manifest.blocks)} == {0, 1}
    with load(folder, tmp_path / "plain", "full") as model:
        assert torch.equal(logits(model), found)


def test_experts_with_different_planes_are_computed_side_by_side(small_floats: Path, tmp_path: Path) -> None:
    """The lean way takes them together, and has the bits of the plain one, which takes one at a time."""
    with load(small_floats, tmp_path, "adaptive", host_memory="1GiB") as model:
        settled(model)
        stats = model.penstock.stats()
        assert trusted(model) == {True}
    assert len(stats.products_by_planes) == 2
