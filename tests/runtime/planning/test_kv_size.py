"""What KV will take is known before there are weights: as much as a real cache then takes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.planning.kv_size import count_kv_bytes, find_kv_layers
from tests.support.tiny_models import tiny_config


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next"])
def test_as_much_as_transformers_caches(name: str) -> None:
    config = tiny_config(name)
    layers = find_kv_layers(build_meta_model(config, torch.float32))
    assert layers is not None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    def cached(tokens: int) -> int:
        with torch.no_grad():
            cache = model(torch.full((1, tokens), 5), use_cache=True).past_key_values
        kept = [x for layer in cache.layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        return sum(x.nbytes for x in kept if x is not None)

    assert count_kv_bytes(layers, 10, "as-is") == (cached(11) - cached(10), cached(10))
    more, total = count_kv_bytes(
        layers, 40, "as-is"
    )  # beyond the windows, of which transformers keeps all but one token
    assert more == cached(41) - cached(40)
    windowed = sum(layer.bytes_in("as-is") for layer in layers if layer.window is not None)
    assert total == cached(40) + windowed


def test_formats() -> None:
    layers = find_kv_layers(build_meta_model(tiny_config("llama", hidden_size=256), torch.bfloat16))
    assert layers is not None
    sizes = {name: count_kv_bytes(layers, 1000, name)[1] for name in ("as-is", "int8", "int4", "mixed")}
    assert sizes["as-is"] == 1000 * 2 * 2 * 2 * 64 * 2
    assert sizes["int8"] == pytest.approx(sizes["as-is"] * 9 / 16, rel=0.02)
    assert sizes["int4"] == pytest.approx(sizes["as-is"] * 5 / 16, rel=0.02)
    assert sizes["mixed"] == pytest.approx((sizes["int8"] + 3 * sizes["int4"]) / 4, rel=0.001)
