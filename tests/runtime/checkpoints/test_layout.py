"""The layout of bundles: every weight once, in the order of use, big ones apart from small ones."""

import re

import pytest
import torch
from torch import nn

from penstock.runtime.checkpoints import layout as layout_module
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.checkpoints.modules import is_experts
from penstock.tiering.errors import CheckpointError, UnplaceableModule
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.units import PAGE, BlockId, MiB
from tests.support.tiny_models import EXPERT_NAMES, NAMES, tiny_config


def sizes(blocks: tuple[Block, ...]) -> int:
    return sum(spec.length for block in blocks for spec in block.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_has_one_place(name: str) -> None:
    model = build_meta_model(tiny_config(name), torch.bfloat16)
    plan = describe(model)
    state = model.state_dict()
    placed: dict[str, int] = {}
    for block in plan.blocks:
        assert block.tensors
        for spec in block.tensors:
            placed[spec.name] = placed.get(spec.name, 0) + spec.length
            assert str(state[spec.name].dtype) == f"torch.{spec.dtype}"
            expected = state[spec.name].shape[1:] if block.id.kind == "expert" else state[spec.name].shape
            assert spec.shape == tuple(expected)
    assert placed == {key: tensor.nbytes for key, tensor in state.items() if key not in plan.tied}
    assert placed.keys().isdisjoint(plan.tied)
    assert set(plan.tied.values()) <= placed.keys()


@pytest.mark.parametrize("name", NAMES)
def test_extents_follow_each_other(name: str) -> None:
    plan = describe(build_meta_model(tiny_config(name), torch.float32))
    end = 0
    for block in plan.blocks:
        assert (block.extent.file, block.extent.offset) == (0, end)
        assert block.extent.length % PAGE == 0
        end = block.extent.end
    assert plan.total_bytes == end
    assert [(file.name, file.length) for file in plan.files] == [("data-00000.bin", end)]


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_experts_come_one_by_one_behind_their_layers_dense_blocks(name: str) -> None:
    model = build_meta_model(tiny_config(name), torch.float32)
    blocks = describe(model).blocks
    paths = [path for path, module in model.named_modules() if is_experts(module)]
    assert paths
    for path in paths:
        parts = [block.id.part for block in blocks if block.id[:2] == ("expert", path)]
        assert parts == list(range(8))
    layers = [re.match(r"model\.layers\.(\d+)\.", block.id.module) for block in blocks]
    order = [(int(match[1]), block.id.kind == "expert") for match, block in zip(layers, blocks, strict=True) if match]
    assert order == sorted(order)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_dense_models_have_no_experts(name: str) -> None:
    model = build_meta_model(tiny_config(name), torch.float32)
    assert not any(is_experts(module) for module in model.modules())
    assert all(block.id.kind == "dense" for block in describe(model).blocks)


def test_small_weights_are_resident_and_first() -> None:
    plan = describe(build_meta_model(tiny_config("llama"), torch.float32))
    resident = [block.resident for block in plan.blocks]
    assert resident == sorted(resident, reverse=True)
    assert plan.blocks[0].id == BlockId("dense", "", 0)
    names = {spec.name for block in plan.blocks if block.resident for spec in block.tensors}
    assert "model.norm.weight" in names
    assert "model.embed_tokens.weight" not in names


def test_tied_weights_are_stored_under_the_first_name() -> None:
    tied = describe(build_meta_model(tiny_config("qwen2", tie_word_embeddings=True), torch.float32))
    apart = describe(build_meta_model(tiny_config("qwen2", tie_word_embeddings=False), torch.float32))
    assert tied.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert apart.tied == {}
    assert sizes(apart.blocks) - sizes(tied.blocks) == 320 * 64 * 4


def test_weights_kept_in_float32_are_so_in_the_skeleton() -> None:
    class Kept(type(build_meta_model(tiny_config("llama"), torch.float32))):  # type: ignore[misc]
        _keep_in_fp32_modules_strict = ("norm",)

    from penstock.runtime.checkpoints.meta_model import _apply_dtype_plan

    with torch.device("meta"):
        model = Kept(tiny_config("llama")).to(torch.bfloat16)
    _apply_dtype_plan(model, torch.bfloat16)
    dtypes = {spec.name: spec.dtype for block in describe(model).blocks for spec in block.tensors}
    assert dtypes["model.norm.weight"] == "float32"
    assert dtypes["lm_head.weight"] == "bfloat16"


def test_a_type_without_causal_model_is_refused() -> None:
    from transformers import AutoConfig

    with pytest.raises(CheckpointError, match="vit"):
        build_meta_model(AutoConfig.for_model("vit"), torch.float32)


def test_a_module_and_its_activation_are_a_unit() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(512, 512))
            self.act = nn.SiLU()

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(512, 512))
            self.inner = nn.Linear(8, 8)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gated, self.holder = Gated(), Holder()

    blocks = describe(Model()).blocks
    assert [(block.id, block.resident) for block in blocks] == [
        (BlockId("dense", "", 0), True),
        (BlockId("dense", "gated"), False),
    ]
    assert [spec.name for spec in blocks[0].tensors] == ["holder.weight", "holder.inner.weight", "holder.inner.bias"]


def test_resident_blocks_and_files_stay_below_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "RESIDENT_BLOCK", 16 * 1024)
    monkeypatch.setattr(layout_module, "FILE_LIMIT", MiB)
    model = nn.Sequential(*[nn.Linear(300, 300) for _ in range(8)], *[nn.Linear(60, 8) for _ in range(30)])
    plan = describe(model)
    resident = [block for block in plan.blocks if block.resident]
    assert len(resident) > 1
    assert all(block.extent.length <= 16 * 1024 for block in resident)
    assert len(plan.files) > 1
    assert all(file.length <= MiB for file in plan.files)
    assert sum(file.length for file in plan.files) == plan.total_bytes


def test_a_module_with_other_state_is_named() -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"scale": 1}

    with pytest.raises(UnplaceableModule, match="_extra_state"):
        describe(nn.Sequential(Odd(4, 4)))
