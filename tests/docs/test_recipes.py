"""The recipes run as they are written, with tiny models in the place of MODEL."""

import ast
import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from tests.support.chat_models import save_chat_model
from tests.support.gguf_files import write
from tests.support.pages import DOCS, blocks

RECIPES = sorted(page for page in (DOCS / "recipes").glob("*.md") if [*blocks(page.read_text("utf-8"), "python")])

CHECKS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "chat": lambda run, said: [each["role"] for each in run["messages"]][-2:] == ["user", "assistant"],
    "streaming": lambda run, said: len(said) > 1,
    "asyncio": lambda run, said: len(run["texts"]) == 3 and abs(run["vector"].norm() - 1) < 1e-5,
    "jupyter": lambda run, said: "GiB in memory" in said,
    "gguf": lambda run, said: int(said) > 0,
    "adapters": lambda run, said: "q_proj.lora_A" in str([*run["adapted"].state_dict()]),
    "does-not-fit": lambda run, said: "set host_memory to at least" in said and run["plan"] is not None,
}
"""What a recipe must have done: its names, and what it printed."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the names in the recipes."""
    folder = tmp_path_factory.mktemp("recipes")
    model = save_chat_model(folder / "model")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(folder / "adapter")
    return {
        '"MODEL"': json.dumps(str(model)),
        '"ADAPTER"': json.dumps(str(folder / "adapter")),
        '"model.gguf"': json.dumps(str(write(folder / "model.gguf", "llama", lambda name: "F16"))),
        "1MiB": "1KiB",  # the model is small
    }


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_it_runs(page: Path, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "penstock.toml").write_text(f'[store]\npath = "{tmp_path / "store"}"\n[compute]\nthreads = 1\n')
    run: dict[str, Any] = {}
    opened: list[Any] = []
    load = penstock.load
    monkeypatch.setattr(penstock, "load", lambda *args, **more: opened.append(load(*args, **more)) or opened[-1])
    for code in blocks(page.read_text("utf-8"), "python"):
        for name, place in places.items():
            code = code.replace(name, place)
        found = eval(compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), run)
        if inspect.iscoroutine(found):  # as a notebook awaits its cells
            asyncio.run(found)
    assert [model for model in opened if not model.penstock._closed] == []
    if "penstock.load" in page.read_text("utf-8") and page.stem != "does-not-fit":
        assert opened, "it loads no model"
    check = CHECKS.get(page.stem)
    assert check is None or check(run, capsys.readouterr().out)
