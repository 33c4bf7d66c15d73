"""The public names: they are there, they say what they are, and importing them is quick."""

import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
import penstock.routing
import penstock.sim
from tests.support.tiny_models import tiny_config

DESIGNED = {
    "fits",
    "tokens_per_second",
    "time_to_first_token_s",
    "flash_bytes_per_token",
    "hit_ratio",
    "limited_by",
    "minimum_host_memory",
}
"""What every plan says, whoever asks."""


@pytest.mark.parametrize("module", [penstock, penstock.sim, penstock.routing], ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_described(module):
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), name
    assert set(module.__all__) <= set(dir(module))


def test_the_surface_of_the_design():
    names = {"load", "wrap", "plan", "handle", "Config", "Handle", "Stats", "Trace", "sim", "routing", "PenstockError"}
    assert names <= set(penstock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        penstock.lod  # noqa: B018


@pytest.mark.parametrize("imported", ["penstock", "penstock.sim"])
def test_importing_is_quick(imported: str):
    """Neither loads torch: the command line answers at once, and simulating needs none."""
    code = f"import sys, {imported}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("elsewhere", "quick")
def test_plan_says_what_the_command_says(ask, checkpoint: Path):
    for settings in ({}, {"host_memory": "300KiB"}, {"host_memory": 1000}):
        found = penstock.plan(checkpoint, prompt_tokens=100, context=64, **settings)
        options = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
        said = ask("plan", checkpoint, "--prompt-tokens", 100, "--context", 64, *options)
        made = found.to_dict()
        for each in (said, made):
            each.pop("flash_free")  # others write to this drive, too
        assert made == said
        assert said.keys() >= DESIGNED
        assert {name: getattr(found, name) for name in DESIGNED} == {name: said[name] for name in DESIGNED}
    with pytest.raises(FrozenInstanceError):
        found.fits = True
    with pytest.raises(penstock.ConfigError, match='did you mean "host_memory"'):
        penstock.plan(checkpoint, host_memry="1GiB")


def test_the_handle_of_a_model(tiny_dense_folder: Path, store: Path):
    with penstock.load(tiny_dense_folder, store=store) as model:
        handle = penstock.handle(model)
        assert isinstance(handle, penstock.Handle)
        assert handle is model.penstock
        assert isinstance(handle.stats(), penstock.Stats)
    plain = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float32)
    with pytest.raises(penstock.ConfigError, match=r"LlamaForCausalLM is no model of penstock.*penstock\.load"):
        penstock.handle(plain)
