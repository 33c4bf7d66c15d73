"""Checkpoints that several tests load, made once."""

from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny


@pytest.fixture(scope="session")
def tiny_moe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE in float32."""
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("checkpoints") / "qwen3_moe", torch.float32)


@pytest.fixture(scope="session")
def tiny_dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in float32."""
    return save_tiny("llama", tmp_path_factory.mktemp("checkpoints") / "llama", torch.float32)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store shared by tests that do not care what else is in it."""
    return tmp_path_factory.mktemp("store")
