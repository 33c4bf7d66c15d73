"""Adapters of PEFT over a streamed model: the bits of transformers with the same adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.pairs import BUDGETS, IDS, pair
from tests.support.tiny_models import save_tiny

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
NAMES = ("llama", "qwen3", "qwen3_moe")


def adapter(folder: Path, source: Path, seed: int, **options: object) -> Path:
    """A LoRA adapter for the model in ``source`` with random numbers, saved in ``folder``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(source)
    targets = [name for name in TARGETS if any(path.endswith(name) for path, _ in model.named_modules())]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **options)  # type: ignore[arg-type]
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def adapters(name: str, tmp_path: Path) -> tuple[Path, Path]:
    source = save_tiny(name, tmp_path / "model")
    return adapter(tmp_path / "a", source, 1), adapter(tmp_path / "b", source, 2)


def same(models: tuple[PreTrainedModel, PreTrainedModel]) -> bool:
    plain, streamed = models
    with torch.no_grad():
        return torch.equal(plain(IDS).logits, streamed(IDS).logits)


@pytest.mark.parametrize("budget", BUDGETS)
def test_peft_loads_switches_and_unloads(name: str, budget: str, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = adapters
    with pair(tmp_path, name, budget) as both:
        bare = both.plain(IDS).logits
        models = tuple(PeftModel.from_pretrained(model, first, adapter_name="a").eval() for model in both)
        assert same(models)
        assert not torch.equal(models[1](IDS).logits, bare)
        for model in models:
            model.load_adapter(second, adapter_name="b")
            model.set_adapter("b")
        assert same(models)
        for model in models:
            model.base_model.set_adapter(["a", "b"])
        assert same(models)
        with models[0].disable_adapter(), models[1].disable_adapter():
            assert same(models)
            assert torch.equal(models[1](IDS).logits, bare)
        for model in models:
            model.delete_adapter("a")
            model.set_adapter("b")
        assert same(models)
        assert torch.equal(*(model.generate(input_ids=IDS[:1], max_new_tokens=4, do_sample=False) for model in models))
        models[1].save_pretrained(tmp_path / "saved")
        unloaded = tuple(model.unload() for model in models)
        assert same(unloaded)
        assert torch.equal(unloaded[1](IDS).logits, bare)


@pytest.mark.parametrize("budget", BUDGETS)
def test_transformers_loads_switches_and_deletes(
    name: str, budget: str, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    with pair(tmp_path, name, budget) as both:
        bare = both.plain(IDS).logits
        for model in both:
            for label, folder in zip("ab", adapters, strict=True):
                model.load_adapter(folder, adapter_name=label)
            model.set_adapter("a")
        assert both.same_logits()
        for model in both:
            model.set_adapter("b")
        assert both.same_logits()
        for model in both:
            model.disable_adapters()
        assert torch.equal(both.streamed(IDS).logits, bare)
        for model in both:
            model.enable_adapters()
            model.set_adapter(["a", "b"])
        assert both.same_logits()
        for model in both:
            model.set_adapter("a")
        both.streamed.save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
        for model in both:
            model.delete_adapter("b")
        assert both.same_logits()


@pytest.mark.parametrize("budget", ["least", "elastic"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merging_works_on_counted_copies_or_names_the_weight(dora: bool, budget: str, tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "model")
    folder = adapter(tmp_path / "a", source, 1, use_dora=dora)
    with pair(tmp_path, "llama", budget) as both:
        models = tuple(PeftModel.from_pretrained(model, folder).eval() for model in both)
        assert same(models)
        if budget == "least":
            with pytest.raises(penstock.BudgetTooSmall, match=r"q_proj\.weight was to be changed"):
                models[1].merge_and_unload()
            return
        merged = tuple(model.merge_and_unload() for model in models)
        assert same(merged)
        assert both.streamed.penstock.stats().changed_bytes > 0


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "gaussian", True])
def test_initialisations_that_need_whole_weights(init: str | bool, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "elastic") as both:
        models = []
        for model in both:
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init)  # type: ignore[arg-type]
            models.append(get_peft_model(model, config).eval())
        assert same((models[0], models[1]))


def test_modules_to_save(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "elastic") as both:
        models = []
        for model in both:
            torch.manual_seed(0)
            config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
            models.append(get_peft_model(model, config).eval())
            with torch.no_grad():
                models[-1].base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
        assert same((models[0], models[1]))


def test_experts_with_parametrised_weights(tmp_path: Path) -> None:
    with pair(tmp_path, "qwen3_moe", "elastic") as both:
        models = []
        for model in both:
            torch.manual_seed(0)
            config = LoraConfig(
                r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"], init_lora_weights=False
            )
            models.append(get_peft_model(model, config).eval())
        assert same((models[0], models[1]))


def test_adapters_keep_the_bits_in_bfloat16(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "model", torch.bfloat16)
    folder = adapter(tmp_path / "a", source, 1)
    for budget in BUDGETS:
        with pair(tmp_path, "llama", budget, torch.bfloat16) as both:
            models = tuple(PeftModel.from_pretrained(model, folder).eval() for model in both)
            assert same(models)


def add(way: str, model: Any, config: LoraConfig, source: Path, folder: Path) -> None:
    if way == "get_peft_model":
        get_peft_model(model, config)
    elif way == "add_adapter":
        model.add_adapter(config, "default")
    else:
        if not folder.exists():
            get_peft_model(AutoModelForCausalLM.from_pretrained(source), config).save_pretrained(folder)
        model.load_adapter(folder)


@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter", "load_adapter"])
def test_an_adapter_that_is_refused_midway_stops_the_model(way: str, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least", torch.bfloat16) as both:
        model = both.streamed
        config = LoraConfig(r=2, target_modules=["k_proj", "gate_proj"], init_lora_weights="pissa")
        with pytest.raises(penstock.BudgetTooSmall, match="was to be changed"):
            add(way, model, config, tmp_path / "model", tmp_path / "a")
        assert any("lora_A" in name for name, _ in model.named_parameters())  # PEFT leaves them there
        for use, given in ((model, IDS), (model.model, IDS), (model.lm_head, torch.zeros(1, 64).bfloat16())):
            with pytest.raises(penstock.PenstockError, match=r"in a part of this model only.*load the model again"):
                use(given)


@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter", "load_adapter"])
def test_an_adapter_that_is_refused_at_its_first_module_leaves_the_model(way: str, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "least", torch.bfloat16) as both:
        pissa, plain = (
            LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=init) for init in ("pissa", False)
        )
        with pytest.raises(penstock.BudgetTooSmall, match="was to be changed"):
            add(way, both.streamed, pissa, tmp_path / "model", tmp_path / "a")
        assert both.same_logits()
        assert not both.streamed._hf_peft_config_loaded
        for model in both:
            torch.manual_seed(0)
            model.add_adapter(plain, "default")
        assert both.same_logits()


def test_the_file_of_an_adapter_names_its_model(tmp_path: Path) -> None:
    """As transformers does, so that PEFT finds the model for the adapter."""
    with pair(tmp_path, "llama", "least") as both:
        for model in both:
            get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS)).save_pretrained(tmp_path / "adapter")
            saved = PeftConfig.from_pretrained(tmp_path / "adapter")
            assert saved.base_model_name_or_path == str(tmp_path / "model")
