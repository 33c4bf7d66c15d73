"""Checkpoints as they come: safetensors, quantised, GGUF; and how their tensors become a model's."""
