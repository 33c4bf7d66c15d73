"""Paged KV of a model that computes on a device: the newest pages lie there, attention is computed where pages are.

The model says what transformers says, on the emulated device, with a sixth of its KV there and a sixth in memory.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny_models import save_tiny

from .paged import TOKENS, paged, settle, tier_of

PROMPT, MORE, STEPS = 40, 60, 40
IDS = torch.randint(3, 300, (2, PROMPT + MORE), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[0, :20] = 0
ON_DEVICE: dict[str, Any] = {"device": "emulated", "device_memory": "64MiB"}

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},
    "gemma3_text": {"sliding_window": 40},
    "gpt_oss": {"sliding_window": 40},
    "deepseek_v3": {"num_hidden_layers": 2},
    "qwen3_next": {},
}


def said(model: PreTrainedModel, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, float32 [B, .., V], of a padded prompt, of a longer one behind it, and of single tokens, which are
    ``tokens`` [B, STEPS] or the best ones; and these."""
    past, logits, chosen = None, [], []
    mask = torch.nn.functional.pad(PADDED, (0, STEPS), value=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    ids, at = IDS[:, :PROMPT], 0
    with torch.no_grad():
        for step in range(STEPS + 2):
            end = at + ids.shape[1]
            options = {"attention_mask": mask[:, :end], "position_ids": places[:, at:end], "past_key_values": past}
            out = model(ids, use_cache=True, **options)
            past, at = out.past_key_values, end
            logits.append(out.logits[:, -1:])
            chosen.append(out.logits[:, -1:].argmax(-1))
            following = chosen[-1] if tokens is None else tokens[:, step : step + 1]
            ids = IDS[:, PROMPT:] if step == 0 else following
    return torch.cat(logits, 1).float(), torch.cat(chosen, 1)


def kv_bytes(model: PreTrainedModel) -> int:
    """Of all of the context, in pages; of layers with a window too."""
    past: Any = model(IDS[:, :1], use_cache=True).past_key_values
    shapes = [shape for layer in past.layers for shape in getattr(layer, "shapes", ())]
    return len(IDS) * -(-(PROMPT + MORE + STEPS) // TOKENS) * sum(-(-shape.size // 4096) * 4096 for shape in shapes)


def books(model: PreTrainedModel) -> None:
    """Wait until nothing is copied, read or written any more, and look at the books."""
    tier = tier_of(model)
    settle(tier.pool)
    assert tier.upper is not None
    tier.upper._books.check_integrity(tier.pool._pages)


CASES = [
    *(pytest.param(name, torch.float32, id=f"{name}-float32") for name in KINDS),
    pytest.param("llama", torch.bfloat16, id="llama-bfloat16"),
    *(pytest.param(name, torch.bfloat16, id=f"{name}-bfloat16", marks=pytest.mark.soak) for name in [*KINDS][1:]),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_it_says_the_same(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, dtype, max_position_embeddings=256, **KINDS[name])
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    wanted, tokens = said(AutoModelForCausalLM.from_pretrained(folder, **options).eval())
    with paged(folder, tmp_path / "store", "1MiB", **ON_DEVICE) as model:
        all_ = kv_bytes(model)
    budgets = {"kv": all_ // 6, "kv_device_memory": all_ // 6}
    with paged(folder, tmp_path / "store", **budgets, **ON_DEVICE) as model:
        tier_of(model).staging = 0  # nothing is left to the module's own attention
        found, _ = said(model, tokens)
        books(model)
        stats = model.penstock.stats()
    assert stats.kv_device_budget == all_ // 6 // 4096 * 4096
    assert stats.kv_pages_up * 4096 > stats.kv_device_budget, "pages came and went"
    assert stats.kv_pages_read > STEPS, "the context fitted: the test shows nothing"
    near = (1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps) * wanted.abs().amax(-1)
    assert bool(((found - wanted).abs().amax(-1) <= near).all())
    best = wanted.topk(2, -1).values
    clear = best[..., 0] - best[..., 1] > 2 * near
    assert float(clear.float().mean()) > (0.99 if dtype == torch.float32 else 0.5)
    assert torch.equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])
