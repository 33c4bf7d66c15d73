"""Random matrices in the block formats of GGUF."""

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

GGUF_NAMES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k")

_HALVES = {
    "q4_1": (0, 2),
    "q5_1": (0, 2),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "q2_k": (80, 82),
    "mxfp4": (),
}
"""Bytes of a block at which float16 numbers begin; else only the first."""


def random_blocks(name: str, rows: int, columns: int) -> torch.Tensor:
    """uint8 [rows, bytes per row]: any numbers, with finite scales."""
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]]
    blocks = torch.randint(0, 256, (rows * columns // numbers, size), dtype=torch.uint8)
    for at in _HALVES.get(name, (0,)):
        blocks[:, at : at + 2] = (torch.randn(len(blocks), 1) * 0.02).half().view(torch.uint8)
    if name == "mxfp4":
        blocks[:, 0] = 120
    return blocks.view(rows, -1)
