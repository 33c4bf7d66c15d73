"""On paged KV a model says what transformers says: of every kind of attention, with an eighth of its KV in memory.

Both are given the same tokens, those that transformers chooses. In bfloat16 the two best tokens of a random model are
often neighbours on the scale, or the same: which of them is chosen is then a matter of the order of float32 sums, and
two runs that go on with their own choice have nothing in common from there on. So have they when two experts tie. With
these weights no router does: the logits would be far off.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.decoding import assert_says_the_same, decode, page_bytes
from tests.support.paged import paged, settle, tier_of
from tests.support.tiny_models import save_tiny

PROMPT, STEPS = 56, 200
IDS = torch.randint(3, 300, (2, PROMPT), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[0, :20] = 0

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},  # queries in groups
    "gpt_neox": {},  # each query head with keys of its own
    "gemma3_text": {},  # sliding windows
    "gpt_oss": {},  # sinks
    "deepseek_v3": {"num_hidden_layers": 2},  # latents
    "qwen3_next": {},  # recurrent layers between
}


def chosen(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [B, STEPS], and the logits that they are chosen by, float32 [B, STEPS, V]."""
    with torch.no_grad():
        out = model.generate(
            IDS,
            attention_mask=PADDED,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out.sequences[:, PROMPT:], torch.stack(out.logits, 1).float()


SLOW = {"deepseek_v3": pytest.mark.soak}
CASES = [
    *(pytest.param(name, torch.float32, id=f"{name}-float32", marks=SLOW.get(name, ())) for name in KINDS),
    pytest.param("llama", torch.bfloat16, id="llama-bfloat16"),
    *(pytest.param(name, torch.bfloat16, id=f"{name}-bfloat16", marks=pytest.mark.soak) for name in [*KINDS][1:]),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_two_hundred_tokens(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, dtype, max_position_embeddings=512, **KINDS[name])
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    tokens, wanted = chosen(AutoModelForCausalLM.from_pretrained(folder, **options).eval())
    with paged(folder, tmp_path / "store", "1MiB") as model:
        budget = page_bytes(model, len(IDS), PROMPT + STEPS) // 8
    with paged(folder, tmp_path / "store", budget) as model:
        tier_of(model).staging = 0  # nothing is left to the module's own attention
        found, _ = decode(model, [IDS], STEPS - 1, mask=PADDED, tokens=tokens)
        settle(tier_of(model).pool)
        stats = model.penstock.stats()
    assert stats.kv_bytes_written > budget, "the context fitted: the test shows nothing"
    assert stats.kv_pages_read > STEPS
    assert_says_the_same(found, wanted, dtype)
