"""Long prompts in parts: transformers' bits, memory that does not grow with the prompt, and nothing read again."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

import penstock
from penstock.kernels.products import row_parts as parts
from penstock.kernels.products.row_parts import ROWS
from penstock.runtime.checkpoints.modules import is_experts
from penstock.runtime.experts import fast
from penstock.runtime.modules import chunks
from penstock.runtime.tiers.bridge import Bridge
from penstock.runtime.tiers.leases import Leases
from penstock.tiering.errors import UnplaceableModule
from penstock.tiering.events import Slot
from tests.support.engines import engine_of
from tests.support.logits import least_budget
from tests.support.tiny_models import save_tiny

LONG = 3 * ROWS + 65


def ids(tokens: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, tokens), generator=torch.Generator().manual_seed(tokens))


def saved(name: str, folder: Path, dtype: torch.dtype, **sizes: Any) -> Path:
    return save_tiny(name, folder / name, dtype, **{"max_position_embeddings": 4 * LONG, **sizes})


class Largest(TorchDispatchMode):
    """The most elements that any tensor computed has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.elements = max(self.elements, out.numel())
        return out


def watch(module: nn.Module, largest: Largest) -> None:
    """Have ``largest`` see what is computed in ``module``."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with largest:
            return original(*args, **kwargs)

    module.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen2_moe", "gpt_oss"])
def test_long_prompts_have_the_bits_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    # Few experts, so that each has many rows.
    few = {"num_experts": 2, "num_local_experts": 2, "n_routed_experts": 2, "n_group": 1, "num_experts_per_tok": 1}
    folder = saved(name, tmp_path, dtype, **few)
    reference = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    prompts = [ids(LONG), ids(2 * ROWS), torch.cat([ids(ROWS), ids(ROWS).flip(1)])]
    with torch.no_grad():
        expected = [reference(prompt).logits for prompt in prompts]
    for budget in (1 << 30, least_budget(folder, tmp_path / "store")):
        with penstock.load(folder, store=tmp_path / "store", host_memory=budget) as model, torch.no_grad():
            for prompt, logits in zip(prompts, expected, strict=True):
                assert torch.equal(model(prompt).logits, logits), (budget, prompt.shape)
            engine_of(model).check_integrity()


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_what_is_computed_does_not_grow_with_the_prompt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = 1024
    sizes = {"intermediate_size": wide, "moe_intermediate_size": wide // 2, "num_experts": 2, "num_experts_per_tok": 1}
    folder = saved(name, tmp_path, torch.bfloat16, num_hidden_layers=1, **sizes)
    found = {}
    for rows in (ROWS, 1 << 40):
        monkeypatch.setattr(parts, "ROWS", rows)
        monkeypatch.setattr(chunks, "ROWS", rows)
        with penstock.load(folder, store=tmp_path / "store", host_memory="1GiB") as model, torch.no_grad():
            largest = Largest()
            for module in model.modules():
                if isinstance(module, LlamaMLP) or is_experts(module):
                    watch(module, largest)
            model(ids(3 * LONG), logits_to_keep=1)
            found[rows] = largest.elements
    hidden = 3 * LONG * 64
    assert found[ROWS] <= max(2 * ROWS * wide, hidden)
    assert found[1 << 40] > 2 * found[ROWS], "without parts it grows, or the test shows nothing"


def test_outputs_of_experts_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the expert whose turn it is comes last."""
    folder = saved("qwen3_moe", tmp_path, torch.bfloat16, num_hidden_layers=1, num_experts=4, num_experts_per_tok=2)
    asked: list[int] = []
    acquire = Bridge.acquire

    def noted(self: Bridge, blocks: Any, stream: int | None = None) -> Leases:
        asked.append(sum(block.kind == "expert" for block in blocks))
        return acquire(self, blocks, stream)

    monkeypatch.setattr(fast, "_HEAP", 1)
    with penstock.load(folder, store=tmp_path / "store", host_memory="1GiB") as model, torch.no_grad():
        monkeypatch.setattr(Bridge, "acquire", noted)
        model(ids(2 * LONG), logits_to_keep=1)
    assert max(asked) == 1


class Asked:
    """How often each block of an MLP is asked for, alone and with others; ``refuse``: not with others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuse: bool = False) -> None:
        self.alone, self.together = Counter[str](), Counter[str]()
        acquire = Bridge.acquire

        def noted(bridge: Bridge, blocks: Any, stream: int | None = None) -> Leases:
            mlp = [block.module for block in blocks if ".mlp." in block.module]
            (self.together if len(blocks) > 1 else self.alone).update(mlp)
            if refuse and len(blocks) > 1 and mlp:
                acquire(bridge, blocks[:1], stream).close()
                raise UnplaceableModule("no room")
            return acquire(bridge, blocks, stream)

        lease_resident = Bridge.lease_resident

        def noted_there(bridge: Bridge, blocks: Any) -> list[Slot] | None:
            slots = lease_resident(bridge, blocks)
            if slots is not None:
                self.alone.update(block.module for block in blocks if ".mlp." in block.module)
            return slots

        monkeypatch.setattr(Bridge, "acquire", noted)
        monkeypatch.setattr(Bridge, "lease_resident", noted_there)


@pytest.mark.parametrize("refuse", [False, True])
def test_streamed_weights_are_leased_once(refuse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, or one by one where they do not fit: then the prompt is not divided."""
    folder = saved("llama", tmp_path, torch.bfloat16, intermediate_size=64, vocab_size=640)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(ids(LONG)).logits
        with penstock.load(folder, store=tmp_path / "store", host_memory=least_budget(folder, tmp_path / "store")) as m:
            streamed = {block.module for block in m.penstock.placement.streamed if ".mlp." in block.module}
            assert len(streamed) == 6
            asked = Asked(monkeypatch, refuse=refuse)
            assert torch.equal(m(ids(LONG)).logits, expected)
            engine_of(m).check_integrity()
    assert asked.together == dict.fromkeys(streamed, 1)
    assert asked.alone == (dict.fromkeys(streamed, 1) if refuse else {})


def test_parts_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that are in memory are computed before those that are not, and added after them."""
    folder = saved("qwen3_moe", tmp_path, torch.float32, num_experts=4, num_experts_per_tok=3)
    monkeypatch.setattr(fast, "at_a_time", lambda experts, choices: experts)
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
        with penstock.load(folder, store=tmp_path / "store", host_memory="1GiB") as model:
            some = model.penstock.placement
        budget = some.host_bytes - some.expert_total_bytes // 2
        with penstock.load(folder, store=tmp_path / "store", host_memory=budget) as model:
            for prompt in (ids(2 * LONG), ids(LONG), ids(LONG + 1)):
                assert torch.equal(model(prompt).logits, reference(prompt).logits)
            assert model.penstock.stats().evictions


def test_who_watches_a_module_sees_all_rows_at_once(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path, torch.bfloat16, num_hidden_layers=1)
    seen: list[int] = []
    with penstock.load(folder, store=tmp_path / "store", host_memory="1GiB") as model, torch.no_grad():
        hook = model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *args: seen.append(args[2].shape[1]))
        model(ids(LONG), logits_to_keep=1)
        assert seen == [LONG]
        hook.remove()


class Mixing(LlamaMLP):
    """Not transformers' own, whatever it does."""


def test_only_what_a_trial_can_speak_for_is_divided(tmp_path: Path) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(saved("qwen2_moe", tmp_path, torch.float32))
    layer: Any = model.model.layers[0]
    assert chunks.is_divisible(layer.mlp.shared_expert)
    assert not chunks.is_divisible(layer.mlp), "its experts would be read for every part"
    assert not chunks.is_divisible(layer.input_layernorm), "nothing lies between its weights"
    layer.mlp.shared_expert.__class__ = Mixing
    assert not chunks.is_divisible(layer.mlp.shared_expert)
