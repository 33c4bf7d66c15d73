"""A stored prompt is used only by the model that computed it: whatever is done to a model, its text is transformers'.

Each change is done to a model that has PROMPT stored. Its continuation must be that of a model that never stored
anything, and when the change is taken back, the stored prompt must be the old one.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

import penstock
from penstock.runtime.prefixes import prefix
from penstock.tiering.errors import PrefixError
from tests.support.kept_prompts import PROMPT
from tests.support.tiny_models import save_tiny

IDS = PROMPT[0].tolist()
STORED = 192
Change = Callable[[Any], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("changed") / "llama", attention_dropout=0.5)


@pytest.fixture(autouse=True)
def always_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model computes faster than any drive reads."""
    monkeypatch.setattr(prefix, "worth_reading", lambda *_, **__: True)


@contextmanager
def loaded(folder: Path, store: Path, *, kept: bool = True, **options: Any) -> Iterator[Any]:
    """``kept``: prompts are stored."""
    options = {"host_memory": "64MiB"} | ({"kv_prefix": "16MiB"} if kept else {}) | options
    with penstock.load(folder, store=store, **options) as model:
        yield model


def logits(model: Any, **options: Any) -> torch.Tensor:
    """Of the first new token after PROMPT, [vocabulary]."""
    options = {
        "max_new_tokens": 1,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    } | options
    found: torch.Tensor = model.generate(PROMPT, **options).logits[0][0]
    if model.penstock.prefixes is not None:
        model.penstock.prefixes.flush()
    return found


def hits(model: Any) -> int:
    return int(model.penstock.stats().prefix_hits)


@contextmanager
def put(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, ``owner.name`` is ``value``."""
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """As ``put``, of an attribute that ``owner`` itself need not have."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def double(_: Any, __: Any, out: Any) -> Any:
    return (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2


def double_input(_: Any, args: Any) -> Any:
    return (args[0] * 2, *args[1:])


def negated(self: Any, x: torch.Tensor) -> torch.Tensor:
    return -type(self).forward(self, x)


def forget_rotation(q: torch.Tensor, k: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q, k


class Doubling(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args) * 2


class Doubled(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.nn.functional.silu else out


@contextmanager
def multiplied(tensor: torch.Tensor) -> Iterator[None]:
    tensor.data.mul_(2)
    try:
        yield
    finally:
        tensor.data.div_(2)


@contextmanager
def training(model: Any) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def mlp(model: Any) -> Any:
    return model.model.layers[0].mlp


DESCRIBED: dict[str, Change] = {
    "attribute of a module": lambda m: put(m.model.layers[0].self_attn, "scaling", 1.0),
    "attribute of the norms": lambda m: put(m.model.layers[0].input_layernorm, "variance_epsilon", 1.0),
    "buffer replaced": lambda m: put(m.model.rotary_emb, "inv_freq", m.model.rotary_emb.inv_freq * 2),
    "buffer in place": lambda m: multiplied(m.model.rotary_emb.inv_freq),
    "configuration": lambda m: put(m.config, "_attn_implementation", "eager"),
    "another activation": lambda m: put(mlp(m), "act_fn", nn.Tanh()),
    "layers swapped": lambda m: put(m.model, "layers", nn.ModuleList([*m.model.layers][::-1])),
    "autocast": lambda m: torch.autocast("cpu", dtype=torch.bfloat16),
}
"""Changes that are part of a model's identity: prompts are stored under each."""

UNKNOWN: dict[str, Change] = {
    "forward hook": lambda m: hooked(m.model.layers[0].register_forward_hook(double)),
    "forward hook with keywords": lambda m: hooked(
        m.model.layers[0].register_forward_hook(lambda _, __, ___, out: out * 2, with_kwargs=True)
    ),
    "forward pre-hook": lambda m: hooked(m.model.layers[1].register_forward_pre_hook(double_input)),
    "hook of all modules": lambda m: hooked(nn.modules.module.register_module_forward_hook(lambda _, __, out: None)),
    "hook deep inside": lambda m: hooked(m.model.layers[1].self_attn.k_proj.register_forward_hook(double)),
    "forward of a module": lambda m: patched(mlp(m).act_fn, "forward", types.MethodType(negated, mlp(m).act_fn)),
    "forward of a class": lambda m: put(type(mlp(m).act_fn), "forward", lambda self, x: -x),
    "function in transformers": lambda m: put(modeling_llama, "apply_rotary_pos_emb", forget_rotation),
    "function in torch": lambda m: put(torch.nn.functional, "silu", lambda x, inplace=False: -x),
    "function of torch": lambda m: put(torch, "rsqrt", lambda x: x * 0 + 0.5),
    "method of tensors": lambda m: put(torch.Tensor, "pow", lambda x, n: x * x * 3),
    "module of a user's class": lambda m: put(m.model.layers[0], "mlp", Doubling(mlp(m))),
    "torch function mode": lambda m: Doubled(),
    "dropout": training,
}
"""Changes that nobody can describe: nothing is stored, nothing restored."""


@pytest.mark.parametrize("kv", [{}, {"kv_host_memory": "2MiB"}], ids=["transformers", "pages"])
@pytest.mark.parametrize("name", [*DESCRIBED, *UNKNOWN])
def test_a_changed_model_says_what_it_says_without_stored_prompts(
    llama: Path, tmp_path: Path, name: str, kv: dict[str, Any]
) -> None:
    change = (DESCRIBED | UNKNOWN)[name]
    with loaded(llama, tmp_path / "a", kept=False, **kv) as plain:
        clean = logits(plain)
        with change(plain):
            torch.manual_seed(0)
            wanted = logits(plain)
    assert name in ("hook of all modules",) or not torch.equal(wanted, clean), "the change does nothing"
    with loaded(llama, tmp_path / "b", **kv) as model:
        before = [logits(model) for _ in range(2)]
        assert hits(model) == 0
        with change(model):
            found = []
            for _ in range(3):
                torch.manual_seed(0)
                found.append(logits(model))
            assert hits(model) == (1 if name in DESCRIBED else 0)
        assert torch.equal(logits(model), before[0])  # computed in the same blocks
        assert hits(model) == (2 if name in DESCRIBED else 1)
    torch.testing.assert_close(before[0], clean)
    for each in found:
        torch.testing.assert_close(each, wanted)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_an_unknown_model_computed_is_served_to_nobody(llama: Path, tmp_path: Path, name: str) -> None:
    with loaded(llama, tmp_path) as model, UNKNOWN[name](model):
        for _ in range(2):
            logits(model)
        assert "neither stored nor restored" in model.penstock.stats().prefix_problem
    with loaded(llama, tmp_path) as model:
        logits(model)
        assert hits(model) == 0
        assert not model.penstock.prefixes.store.records()


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_hook_that_comes_or_goes_within_a_prompt(llama: Path, tmp_path: Path, where: str) -> None:
    """A layer's own code adds a hook to the next, or takes one away: what was computed meanwhile is not stored."""
    with loaded(llama, tmp_path) as model:
        logits(model)
        last = model.model.layers[1]
        handles = [last.register_forward_hook(double)] if where == "begin" else []
        original, norm = model.model.norm.forward, model.model.norm

        def forward(*args: Any, **kwargs: Any) -> Any:
            if where == "begin":
                handles.pop().remove()
            else:
                handles.append(last.register_forward_hook(double))
            del norm.forward
            norm.forward = original
            return original(*args, **kwargs)

        norm.forward = forward
        logits(model)
        for handle in handles:
            handle.remove()
        assert not model.penstock.prefixes.store.records()


def stepwise(model: Any, cache: Any, *sizes: int) -> None:
    done = cache.get_seq_length()
    with torch.no_grad():
        for size in sizes:
            model(PROMPT[:, done : done + size], past_key_values=cache)
            done += size


def test_a_cache_that_another_model_filled_is_not_stored(llama: Path, tmp_path: Path) -> None:
    with loaded(llama, tmp_path) as model:
        prefixes = model.penstock.prefixes
        with hooked(model.model.layers[0].register_forward_hook(double)):
            cache = model.penstock.cache()
            stepwise(model, cache, 64, 64)
        with pytest.raises(PrefixError, match="computed the first 0"):
            prefixes.save(IDS, cache)
        stepwise(model, cache, 64)
        with pytest.raises(PrefixError, match="computed the first 0"):
            prefixes.save(IDS, cache)
        for _ in range(2):
            prefixes.offer(IDS, cache)
            prefixes.flush()
        assert not prefixes.store.records()


def test_tokens_that_were_computed_otherwise_are_not_stored(llama: Path, tmp_path: Path) -> None:
    other = [*IDS[:100], 3, *IDS[101:]]
    with loaded(llama, tmp_path) as model:
        prefixes = model.penstock.prefixes
        wrong: dict[str, dict[str, Any]] = {
            "positions": {"position_ids": torch.arange(5, 133)[None]},
            "padding": {"attention_mask": (torch.arange(128) > 4).long()[None]},
            "embeddings": {"inputs_embeds": model.get_input_embeddings()(PROMPT[:, :128])},
        }
        for options in wrong.values():
            cache = model.penstock.cache()
            ids = {} if "inputs_embeds" in options else {"input_ids": PROMPT[:, :128]}
            model(**ids, **options, past_key_values=cache)
            with pytest.raises(PrefixError, match="computed the first 0"):
                prefixes.save(IDS, cache)
        cache = model.penstock.cache()
        stepwise(model, cache, 64, 64)
        with pytest.raises(PrefixError, match="computed the first 100"):
            prefixes.save(other, cache)
        cache.crop(-100)
        stepwise(model, cache, *[1] * 100)
        with pytest.raises(PrefixError, match="computed the first 28"):
            prefixes.save(IDS, cache)


def test_a_cache_of_this_model_is_stored(llama: Path, tmp_path: Path) -> None:
    with loaded(llama, tmp_path) as model:
        prefixes = model.penstock.prefixes
        cache = model.penstock.cache()
        assert prefixes.restore(IDS, cache) == 0
        stepwise(model, cache, 64, 64)
        assert prefixes.save(IDS, cache) > 0
        again = model.penstock.cache()
        assert prefixes.restore(IDS, again) == 128
        stepwise(model, again, 64)
        assert prefixes.save(IDS, again) > 0
        with put(model.model.layers[0].self_attn, "scaling", 1.0), pytest.raises(PrefixError, match="the first 0"):
            prefixes.save(IDS, again)
        with put(model.model.layers[0].self_attn, "scaling", 1.0):
            assert prefixes.restore(IDS, model.penstock.cache()) == 0
        assert model.penstock.prefixes.count_stored(IDS) == 192


def test_the_identity_says_nothing_about_this_run(llama: Path, tmp_path: Path) -> None:
    """The same model under another budget, loaded or wrapped, after it was used: the same stored prompts."""
    roots = []
    for memory in ("64MiB", "1MiB"):
        with loaded(llama, tmp_path, host_memory=memory) as model:
            roots.append(model.penstock.prefixes.root)
            logits(model)
            roots.append(model.penstock.prefixes.root)
            model.generate(PROMPT[:, :20], max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True)
            with model.penstock.trace(tmp_path / "trace.json"):
                roots.append(model.penstock.prefixes.root)
    assert len({*roots}) == 1


def test_rope_that_follows_the_length_keeps_short_prompts_alone(tmp_path: Path) -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    folder = save_tiny("llama", tmp_path / "dynamic", rope_parameters=scaled, max_position_embeddings=128)
    with loaded(folder, tmp_path / "plain", kept=False) as plain:
        wanted = logits(plain)
    with loaded(folder, tmp_path / "store") as model:
        for _ in range(3):
            assert torch.equal(logits(model), wanted)
        assert hits(model) == 0
        assert model.penstock.prefixes.block < 100
        for _ in range(3):
            model.generate(PROMPT[:, :100], max_new_tokens=1)
            model.penstock.prefixes.flush()
        assert hits(model) == 1
