"""Latents in pages: a user's hook on what expands them sees the tokens of the text, as often as in transformers."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.runtime.kv.views.expansions import ExpansionForm
from tests.support.pairs import IDS, pair


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("context", [nullcontext(), torch.inference_mode()], ids=["plain", "inference"])
def test_hooks_see_what_transformers_computes(
    context: AbstractContextManager[None], adapted: bool, tmp_path: Path
) -> None:
    seen: list[list[torch.Tensor]] = [[], []]
    with pair(tmp_path, "deepseek_v3", kv_host_memory="4MiB") as both, context, torch.no_grad():
        for model, outs in zip(both, seen, strict=True):
            if adapted:
                _add_adapter(model)
            for name, module in model.named_modules():
                if name.endswith("kv_b_proj"):
                    module.register_forward_hook(lambda _, args, out, outs=outs: outs.append(out.clone()))
        for model in both:
            model(IDS, use_cache=True)
            model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert len(seen[0]) == len(seen[1]) > 0
    assert all(map(torch.equal, *seen))


def _add_adapter(model: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["kv_b_proj"], init_lora_weights=False))


class Expanding(torch.nn.Module):
    """A module with latents."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(6, 4 * 5)
        self.up.register_forward_hook(lambda *_: pytest.fail("a hook ran"))

    def expand_kv(self, latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As transformers'."""
        values = self.up(latents).view(*latents.shape[:-1], 4, 5)[:, 0].transpose(1, 2)
        return torch.cat([values, rotated.expand(-1, 4, -1, -1)], dim=-1), values


def test_the_form_follows_autocast() -> None:
    form = ExpansionForm(Expanding().expand_kv)
    latents, rotated = torch.zeros(2, 1, 9, 6), torch.zeros(2, 1, 9, 3)
    keys, values = form.like(latents, rotated)
    assert (keys.shape, values.shape) == ((1, 4, 1, 8), (1, 4, 1, 5))
    assert (keys.dtype, values.dtype) == (torch.float32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert form.like(latents, rotated)[1].dtype == torch.bfloat16
    assert form.like(latents, rotated)[1].dtype == torch.float32
