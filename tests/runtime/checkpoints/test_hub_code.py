"""Code from the hub that a configuration names is neither fetched nor run unless it is trusted; templates run in
transformers' sandbox."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from jinja2.exceptions import SecurityError
from transformers import AutoTokenizer
from transformers import modeling_utils as hf_models
from transformers.integrations import hub_kernels

import penstock
from penstock.runtime.checkpoints import hub_code
from penstock.tiering.errors import CheckpointError
from tests.support.tiny_models import save_tiny


class Fetched(Exception):
    """transformers asked the hub for a kernel."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ``kernels`` package, as transformers sees it: what it was asked for."""
    asked: list[str] = []

    def fetch(name: str, **_: Any) -> ModuleType:
        asked.append(name)
        raise Fetched(name)

    for module in (hub_kernels, hf_models, hub_code):
        monkeypatch.setattr(module, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel_hub", fetch, raising=False)
    return asked


def change(folder: Path, name: str, changes: dict[str, Any]) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"attn_implementation": "someone/kernel@main:forward"},
        {"attn_implementation": "paged|someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "someone/kernel"}},
        {"attn_implementation": "flash_attention_2"},
        {"experts_implementation": "sonicmoe"},
    ],
)
def test_a_kernel_that_a_configuration_names_is_refused(
    changes: dict[str, Any], tmp_path: Path, kernels: list[str]
) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "model")
    change(folder, "config.json", changes)
    with pytest.raises(CheckpointError, match=r"code from the Hugging Face hub.*trust_remote_code"):
        penstock.load(folder, store=tmp_path / "store")
    assert kernels == []


def test_a_trusted_kernel_is_asked_for(tmp_path: Path, kernels: list[str]) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    change(folder, "config.json", {"attn_implementation": "someone/kernel"})
    with pytest.raises(CheckpointError, match="someone/kernel"):
        penstock.load(folder, store=tmp_path / "store", trust_remote_code=True)
    assert kernels == ["someone/kernel"]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_kernels": True},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "someone/kernel:RMSNorm"}}, "use_kernels": True},
        {"attn_implementation": "sdpa"},
    ],
)
def test_other_words_of_kernels_fetch_nothing(changes: dict[str, Any], tmp_path: Path, kernels: list[str]) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    change(folder, "config.json", changes)
    with penstock.load(folder, store=tmp_path / "store") as model, torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert kernels == []


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_runs_in_the_sandbox(place: str, tmp_path: Path, checkpoint: Path) -> None:
    ran = tmp_path / "ran"
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch " + (
        f"{ran}') }}}}"
    )
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    if place.endswith(".json"):
        change(folder, place, {"chat_template": template})
    else:
        (folder / place).write_text(template)
    with penstock.load(folder, store=tmp_path / "store") as model:
        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
        assert "system" in tokenizer.chat_template
        with pytest.raises(SecurityError):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert not ran.exists()
