"""Attention weights of a context in pages are those that transformers' eager attention gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.paged import TOKENS, paged, tier_of
from tests.support.tiny_models import save_tiny

IDS = torch.randint(3, 300, (2, 70), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones(2, 90, dtype=torch.long)
PADDED[0, :20] = 0
EAGER: dict[str, Any] = {"attn_implementation": "eager", "experts_implementation": "eager"}

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},  # queries in groups
    "gpt2": {},  # its attention is not told whether weights are wanted
    "gemma3_text": {},  # sliding windows
    "gpt_oss": {},  # sinks
    "deepseek_v3": {"num_hidden_layers": 2},  # latents
}


def weights(model: PreTrainedModel, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Of a prompt, of one token, of a few and of many behind it; for each layer [B, Hq, R, T]."""
    found, past, done = [], None, 0
    with torch.no_grad():
        for rows in (45, 1, 4, 20):
            ids, done = IDS[:, done : done + rows], done + rows
            options = {"attention_mask": None if mask is None else mask[:, :done], "past_key_values": past}
            out = model(ids, use_cache=True, output_attentions=True, **options)
            past = out.past_key_values
            found += out.attentions
    return found


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    near = 1e-6 if wanted.dtype == torch.float32 else 2 * torch.finfo(wanted.dtype).eps
    alike = (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    return alike and bool((found - wanted).abs().max() <= near)


@pytest.mark.parametrize(
    ("name", "dtype", "mask"),
    [
        *((name, torch.float32, None) for name in KINDS),
        ("llama", torch.bfloat16, None),
        ("gemma3_text", torch.float32, PADDED),
    ],
)
def test_they_are_those_of_eager_attention(
    name: str, dtype: torch.dtype, mask: torch.Tensor | None, tmp_path: Path
) -> None:
    folder = save_tiny(name, tmp_path / name, dtype, **KINDS[name])
    wanted = weights(AutoModelForCausalLM.from_pretrained(folder, **EAGER).eval(), mask)
    with paged(folder, tmp_path / "store", "256KiB") as model:
        tier_of(model).staging = 0  # nothing is left to the module's own attention
        found = weights(model, mask)
    assert len(found) == len(wanted) >= 8
    assert all(same(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


def test_generate_gives_them_and_only_if_asked(tiny_dense_folder: Path, store: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True}
    truth = AutoModelForCausalLM.from_pretrained(tiny_dense_folder, **EAGER).eval()
    with paged(tiny_dense_folder, store, "256KiB") as model:
        tier_of(model).staging = 0
        found, wanted = (each.generate(IDS, output_attentions=True, **options) for each in (model, truth))
        assert len(found.attentions) == len(wanted.attentions) == 4
        for mine, theirs in zip(found.attentions, wanted.attentions, strict=True):
            assert all(same(a, b) for a, b in zip(mine, theirs, strict=True))
        assert model.generate(IDS, **options).attentions is None


@pytest.mark.parametrize("mode", ["window", "quest"])
def test_what_is_not_looked_at_has_none(mode: str, tiny_dense_folder: Path, store: Path) -> None:
    """The rest has all, and the numbers are those of a softmax over it alone."""
    with paged(tiny_dense_folder, store, "256KiB", kv_attention=mode, kv_budget="75%") as model, torch.no_grad():
        ids = IDS[:1].repeat(1, 3)
        past = model(ids, use_cache=True).past_key_values
        model(IDS[:1, :1], past_key_values=past)  # what is dropped leaves when the next forward begins
        out = model(IDS[:1, :1], past_key_values=past, output_attentions=True)
    for layer in out.attentions:
        assert layer.shape == (1, 4, 1, 212)
        pages = torch.nn.functional.pad(layer[0, :, 0], (0, -212 % TOKENS)).view(4, -1, TOKENS)
        looked_at = pages.sum(-1) > 0
        assert bool((looked_at == looked_at[0]).all())
        assert 9 <= int(looked_at[0].sum()) <= 11, "three quarters of 14 pages"
        assert bool((layer.sum(-1) - 1).abs().max() < 1e-5)
