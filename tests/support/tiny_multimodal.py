"""Tiny random models that take images or sound, as transformers builds them, with inputs for one sequence."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tr
from transformers import PreTrainedModel

Inputs = dict[str, torch.Tensor]
Built = tuple[PreTrainedModel, Inputs]

IMAGE = 299
"""The token that stands for a part of an image, or of sound."""
_TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _ids(parts: int, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    text = torch.randint(3, 290, (24,), generator=chance).tolist()
    return torch.tensor([[*text[:8], *before, *[IMAGE] * parts, *after, *text[8:]]])


def _pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` without initial values."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) * 0.05)
    return model.eval()


def gemma3(attention: str) -> Built:
    """Tokens of an image see each other."""
    config = tr.Gemma3Config(
        text_config=_TEXT | {"sliding_window": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 3},
        vision_config=_VISION,
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=297,
        eoi_token_index=298,
    )
    ids = _ids(4, (297,), (298,))
    inputs = {"input_ids": ids, "pixel_values": _pixels(1, 3, 32, 32), "token_type_ids": (ids == IMAGE).long()}
    return _build(tr.Gemma3ForConditionalGeneration, config, attention), inputs


def llava(attention: str) -> Built:
    """A CLIP tower."""
    config = tr.LlavaConfig(
        text_config=tr.LlamaConfig(**_TEXT),
        vision_config=tr.CLIPVisionConfig(**_VISION),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    inputs = {"input_ids": _ids(16), "pixel_values": _pixels(1, 3, 32, 32)}
    return _build(tr.LlavaForConditionalGeneration, config, attention), inputs


def paligemma(attention: str) -> Built:
    """The prompt is a prefix whose tokens all see each other."""
    config = tr.PaliGemmaConfig(
        text_config=tr.GemmaConfig(**_TEXT).to_dict(),
        vision_config=tr.SiglipVisionConfig(**_VISION).to_dict(),
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )
    ids = _ids(16)
    inputs = {"input_ids": ids, "pixel_values": _pixels(1, 3, 32, 32), "token_type_ids": torch.zeros_like(ids)}
    return _build(tr.PaliGemmaForConditionalGeneration, config, attention), inputs


def qwen2_vl(attention: str, kind: str = "Qwen2VL") -> Built:
    """Positions in three dimensions."""
    vision = {"embed_dim": 32, "hidden_size": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2}
    if kind == "Qwen2_5_VL":
        vision |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "window_size": 16,
                   "fullatt_block_indexes": [1]}  # fmt: skip
    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = getattr(tr, f"{kind}Config")(
        text_config=_TEXT | {"rope_parameters": rotary},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=296,
        vision_start_token_id=297,
        vision_end_token_id=298,
    )
    inputs = {
        "input_ids": _ids(4, (297,), (298,)),
        "pixel_values": _pixels(16, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return _build(getattr(tr, f"{kind}ForConditionalGeneration"), config, attention), inputs


def qwen2_5_vl(attention: str) -> Built:
    """Windows in the tower."""
    return qwen2_vl(attention, "Qwen2_5_VL")


def idefics3(attention: str) -> Built:
    """Several images of one sequence."""
    config = tr.Idefics3Config(
        text_config=tr.LlamaConfig(**_TEXT).to_dict(),
        vision_config=_VISION,
        image_token_id=IMAGE,
        scale_factor=2,
    )
    inputs = {"input_ids": _ids(8), "pixel_values": _pixels(1, 2, 3, 32, 32)}
    return _build(tr.Idefics3ForConditionalGeneration, config, attention), inputs


def mistral3(attention: str) -> Built:
    """A Pixtral tower with rotary embeddings of its own."""
    config = tr.Mistral3Config(
        text_config=tr.MistralConfig(**_TEXT, sliding_window=None),
        vision_config=tr.PixtralVisionConfig(**_VISION | {"head_dim": 8}),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    inputs = {
        "input_ids": _ids(4),
        "pixel_values": _pixels(1, 3, 32, 32),
        "image_sizes": torch.tensor([[32, 32]]),
    }
    return _build(tr.Mistral3ForConditionalGeneration, config, attention), inputs


def internvl(attention: str) -> Built:
    """A tower that mixes pixels."""
    config = tr.InternVLConfig(
        text_config=tr.Qwen2Config(**_TEXT).to_dict(),
        vision_config=_VISION | {"image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )
    inputs = {"input_ids": _ids(4), "pixel_values": _pixels(1, 3, 32, 32)}
    return _build(tr.InternVLForConditionalGeneration, config, attention), inputs


def mllama(attention: str) -> Built:
    """Layers that attend across to an image, whose keys are cached too."""
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    config = tr.MllamaConfig(
        text_config=text | {"num_hidden_layers": 3, "cross_attention_layers": [1], "vocab_size": 320},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 4, "image_size": 32, "patch_size": 8, "max_num_tiles": 2,
            "intermediate_layers_indices": [0], "vision_output_dim": 64,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image_token_index=IMAGE,
    )  # fmt: skip
    ids = _ids(1)
    inputs = {
        "input_ids": ids,
        "pixel_values": _pixels(1, 1, 2, 3, 32, 32),
        "aspect_ratio_ids": torch.tensor([[2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1]]]),
        "cross_attention_mask": torch.ones(1, ids.shape[1], 1, 2, dtype=torch.long),
    }
    return _build(tr.MllamaForConditionalGeneration, config, attention), inputs


def qwen2_audio(attention: str) -> Built:
    """Sound."""
    config = tr.Qwen2AudioConfig(
        text_config=tr.Qwen2Config(**_TEXT).to_dict(),
        audio_config={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
                      "num_mel_bins": 16, "max_source_positions": 30},
        audio_token_index=IMAGE,
    )  # fmt: skip
    inputs = {
        "input_ids": _ids(15),
        "input_features": _pixels(1, 16, 60),
        "feature_attention_mask": torch.ones(1, 60, dtype=torch.long),
    }
    return _build(tr.Qwen2AudioForConditionalGeneration, config, attention), inputs


def _build(kind: Any, config: Any, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config._attn_implementation = attention
    return _shaken(kind(config))


FAMILIES: dict[str, Callable[[str], Built]] = {
    build.__name__: build
    for build in (gemma3, llava, paligemma, qwen2_vl, qwen2_5_vl, idefics3, mistral3, internvl, mllama, qwen2_audio)
}
