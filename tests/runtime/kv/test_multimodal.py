"""Paged KV of models that take images or sound: pages are for the text decoder's own attention alone.

Towers, attention across to an image, masks that let tokens see what comes after them, and forwards without a cache
compute what transformers computes.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from tests.support.paged import tier_of
from tests.support.tiny_models import save_tiny
from tests.support.tiny_multimodal import FAMILIES

GENERATE: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "eos_token_id": None,
    "output_logits": True,
    "return_dict_in_generate": True,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "pages, stored prompts": {"kv_host_memory": "2MiB", "kv_prefix": "8MiB"},
}


def generated(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of new tokens, [tokens, vocabulary]."""
    return torch.cat(model.generate(**inputs, **GENERATE).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_and_sound(name: str, attention: str, tmp_path: Path) -> None:
    truth, inputs = FAMILIES[name](attention)
    wanted = generated(truth, inputs)
    with torch.no_grad():
        once = truth(**inputs, use_cache=False).logits
        text = truth(inputs["input_ids"][:, :6]).logits
        loss = truth(**inputs, labels=inputs["input_ids"]).loss
    for setting, options in SETTINGS.items():
        model, _ = FAMILIES[name](attention)
        with penstock.wrap(model, store=tmp_path, host_memory="64MiB", **options), torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(generated(model, inputs), wanted, rtol=1e-4, atol=1e-4, msg=setting)
            assert torch.equal(model(**inputs, use_cache=False).logits, once), setting
            torch.testing.assert_close(model(inputs["input_ids"][:, :6]).logits, text, rtol=1e-4, atol=1e-4)
            assert torch.equal(model(**inputs, labels=inputs["input_ids"]).loss, loss), setting
            assert model.penstock.stats().prefix_hits == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_in_pages(name: str, tmp_path: Path) -> None:
    """Nothing is left to eager's own function."""
    (truth, inputs), (model, _) = FAMILIES[name]("sdpa"), FAMILIES[name]("sdpa")
    with penstock.wrap(model, store=tmp_path, host_memory="64MiB", kv_host_memory="2MiB"):
        tier_of(model).staging = 0
        torch.testing.assert_close(generated(model, inputs), generated(truth, inputs), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "gpt2"])
def text_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("text") / request.param)


IDS = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(3))
PADDING = torch.ones_like(IDS)
PADDING[0, :5] = 0
TREE = torch.ones(20, 20).tril().bool()
TREE[15:, 11:15] = False
WITHOUT_CACHE: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "padding": {"use_cache": False, "attention_mask": PADDING},
    "labels": {"labels": IDS},
    "a mask of the user's": {"use_cache": False, "attention_mask": TREE.expand(2, 1, 20, 20)},
    "packed": {"use_cache": False, "position_ids": torch.tensor([[*range(12), *range(8)]] * 2)},
}


@pytest.mark.parametrize("name", WITHOUT_CACHE)
def test_a_forward_without_a_cache_is_transformers_own(text_folder: Path, name: str, tmp_path: Path) -> None:
    truth = AutoModelForCausalLM.from_pretrained(text_folder).eval()
    options = WITHOUT_CACHE[name]
    kv = {"host_memory": "64MiB", "kv_host_memory": "2MiB"}
    with penstock.load(text_folder, store=tmp_path, **kv) as model, torch.no_grad():
        assert torch.equal(model(IDS, **options).logits, truth(IDS, **options).logits)


@pytest.mark.parametrize("staging", [None, 0])
def test_a_mask_of_the_users_with_pages(text_folder: Path, staging: int | None, tmp_path: Path) -> None:
    """Of booleans, as transformers' sdpa attention takes it, and of numbers."""
    truth = AutoModelForCausalLM.from_pretrained(text_folder).eval()
    mask = TREE.expand(2, 1, 20, 20)
    with penstock.load(text_folder, store=tmp_path, host_memory="64MiB", kv_host_memory="2MiB") as model:
        if staging is not None:
            tier_of(model).staging = staging
        with torch.no_grad():
            wanted = truth(IDS, attention_mask=mask).logits
            for given in (mask, torch.where(mask, 0.0, torch.finfo(torch.float32).min)):
                found = model(IDS, attention_mask=given).logits
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_attention_that_is_not_causal(text_folder: Path, tmp_path: Path) -> None:
    """``is_causal=False`` of a configuration lets all tokens see each other, with pages too."""
    truth = AutoModelForCausalLM.from_pretrained(text_folder).eval()
    with penstock.load(text_folder, store=tmp_path, host_memory="64MiB", kv_host_memory="2MiB") as model:
        for each in (model, truth):
            each.config.is_causal = False
            for module in each.modules():
                if hasattr(module, "is_causal"):
                    module.is_causal = False
        for staging in (tier_of(model).staging, 0):
            tier_of(model).staging = staging
            with torch.no_grad():
                found, wanted = (each(IDS, use_cache=True).logits for each in (model, truth))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_another_implementation_chosen_after_loading(text_folder: Path, tmp_path: Path) -> None:
    truth = AutoModelForCausalLM.from_pretrained(text_folder).eval()
    wanted = generated(truth, {"input_ids": IDS})
    with penstock.load(text_folder, store=tmp_path, host_memory="64MiB", kv_host_memory="2MiB") as model:
        for name in ("eager", "sdpa"):
            model.set_attn_implementation(name)
            torch.testing.assert_close(generated(model, {"input_ids": IDS}), wanted, rtol=1e-4, atol=1e-4)
