"""Weights outside of their modules' forwards: their numbers, or one clear error."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import penstock
from tests.support.engines import engine_of
from tests.support.pairs import BUDGETS, IDS, Pair, pair

NAMES = ("llama", "qwen3", "qwen3_moe", "mixtral", "gpt_oss")
OUTSIDE: dict[str, Callable[[torch.Tensor], Any]] = {
    "norm": lambda w: w.norm(),
    "float norm": lambda w: w.float().norm().item(),
    "transposed": lambda w: torch.linspace(-1, 1, w.shape[-1]).to(w.dtype) @ (w.mT if w.dim() > 1 else w),
    "data": lambda w: w.data.sum(),
    "detach, cpu, numpy": lambda w: torch.from_numpy(w.detach().float().cpu().numpy().copy()),
    "asarray": lambda w: torch.from_numpy(np.array(np.asarray(w.detach().float()))),
    "clone": lambda w: w.clone(),
    "to": lambda w: w.to(torch.float64),
    "a slice": lambda w: w[1:3] * 2,
    "one row": lambda w: w[-1].sum(),
    "rows": lambda w: w[torch.tensor([0, -1])],
    "chunks": lambda w: torch.cat([part.sum().reshape(1) for part in w.chunk(2)]),
    "a view": lambda w: w.view(-1)[3:9] + 1,
    "iteration": lambda w: sum(row.abs().sum() for row in [*w][:3]),
    "equality": lambda w: (w == w).all(),
    "list": lambda w: torch.tensor(w.tolist()),
    "statistics": lambda w: torch.stack([w.float().mean(), w.float().std(), w.max(), w.min()]),
    "text": lambda w: str(w.detach()),
    "deepcopy": lambda w: copy.deepcopy(w),
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_reading_a_weight_gives_its_numbers(name: str, budget: str, tmp_path: Path) -> None:
    with pair(tmp_path, name, budget) as both:
        expected, found = dict(both.plain.named_parameters()), dict(both.streamed.named_parameters())
        assert expected.keys() == found.keys()
        for key, weight in expected.items():
            for function, read in OUTSIDE.items():
                got, wanted = read_or_refused(read, found[key], key), read(weight)
                if got is None:
                    assert budget in ("least", "half"), key
                    continue
                same = torch.equal(got, wanted) if isinstance(wanted, torch.Tensor) else got == wanted
                assert same, (key, function)
        assert both.same_logits()
        engine_of(both.streamed).check_integrity()


def read_or_refused(read: Callable[[torch.Tensor], Any], weight: torch.Tensor, key: str) -> Any:
    """What ``read`` gives; None where the whole weight has no room, with an error that names it."""
    try:
        return read(weight)
    except penstock.UnplaceableModule as error:
        if key not in str(error):
            raise
        return None


@pytest.fixture(params=["least", "elastic"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path, "llama", request.param) as models:
        yield models


def test_the_lens_by_the_weight_of_the_output_layer(both: Pair) -> None:
    with torch.no_grad():
        state = both.streamed.model(IDS).last_hidden_state
        assert torch.equal(state, both.plain.model(IDS).last_hidden_state)
        expected = state @ both.plain.lm_head.weight.T
        assert torch.equal(state @ both.streamed.lm_head.weight.T, expected)
        linear = functional.linear(state, both.plain.lm_head.weight)
        assert torch.equal(functional.linear(state, both.streamed.get_output_embeddings().weight), linear)


def test_a_kept_view_never_shows_other_numbers(both: Pair) -> None:
    kept = [layer.mlp.up_proj.weight.data.T[:5] for layer in both.streamed.model.layers]
    for _ in range(3):
        both.streamed(IDS)
    for view, layer in zip(kept, both.plain.model.layers, strict=True):
        assert torch.equal(view.clone(), layer.mlp.up_proj.weight.data.T[:5])


def test_a_weight_is_one_object(both: Pair) -> None:
    weight = both.streamed.model.layers[0].mlp.up_proj.weight
    seen: list[Any] = []
    module = both.streamed.model.layers[0].mlp.up_proj
    handle = module.register_forward_hook(lambda module, *_: seen.append(module.weight))
    both.streamed(IDS)
    handle.remove()
    assert seen == [weight]
    assert seen[0] is weight
    assert module.weight is weight


def test_tied_weights_are_one_object(tmp_path: Path) -> None:
    for budget in BUDGETS:
        with pair(tmp_path, "qwen3", budget) as both:
            assert both.streamed.lm_head.weight is both.streamed.model.embed_tokens.weight
            assert both.streamed.num_parameters() == both.plain.num_parameters()
            both.streamed.tie_weights()
            assert both.same_logits()


def test_metadata_is_given_without_reading(both: Pair) -> None:
    before = both.streamed.penstock.stats().flash_bytes_read
    state = both.streamed.state_dict()
    for key, tensor in both.plain.state_dict().items():
        assert (tensor.shape, tensor.dtype) == (state[key].shape, state[key].dtype)
        assert tensor.stride() == state[key].stride()
    for parameter in both.streamed.parameters():
        assert parameter.is_contiguous()
        assert parameter.is_leaf
        assert isinstance(parameter, nn.Parameter)
    assert both.streamed.penstock.stats().flash_bytes_read == before


def test_gradients_are_refused(both: Pair) -> None:
    state = torch.randn(2, 64, requires_grad=True)
    weight = both.streamed.model.layers[0].mlp.up_proj.weight
    out = state @ weight.mT
    assert torch.equal(out, state @ weight.clone().mT)
    with pytest.raises(penstock.PenstockError, match="no gradients"):
        out.sum().backward()
    with pytest.raises(penstock.PenstockError, match="clone"):
        weight.data_ptr()


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    for name in ("llama", "qwen3_moe"):
        for budget in BUDGETS:
            with pair(tmp_path / name, name, budget) as both:
                kept = both.streamed.model.layers[0].self_attn.q_proj.weight.detach()
            for weight in both.streamed.parameters():
                assert weight.shape
                with pytest.raises(penstock.Closed, match="closed"):
                    weight.norm()
            if (
                type(kept) is torch.Tensor
            ):  # of a weight that stayed in memory: it stays while somebody has a tensor on it
                assert torch.equal(kept, both.plain.model.layers[0].self_attn.q_proj.weight)
                continue
            with pytest.raises(penstock.Closed, match="closed"):
                kept.norm()


def test_saving_one_weight(both: Pair) -> None:
    file = io.BytesIO()
    torch.save(both.streamed.lm_head.weight, file)
    file.seek(0)
    assert torch.equal(torch.load(file), both.plain.lm_head.weight)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("format", ["as-is", "int4"])
def test_what_is_written_to_an_array_is_never_lost(format: str, budget: str, tmp_path: Path) -> None:
    with pair(tmp_path, "llama", budget, weights_format=format) as both:
        for module in ("model.layers.0.mlp.up_proj", "model.layers.1.input_layernorm"):
            weight = both.streamed.get_submodule(module).weight
            array = weight.detach().numpy()
            if array.flags.writeable:
                array[:] *= 2
                assert torch.equal(weight, torch.from_numpy(array))
            else:
                with pytest.raises(ValueError, match="read-only"):
                    array[:] *= 2


def test_an_array_on_a_changed_weight_writes_to_it(tmp_path: Path) -> None:
    with pair(tmp_path, "llama", "elastic") as both, torch.no_grad():
        module = both.streamed.model.layers[0].mlp.up_proj
        kept = module.weight.mul_(2).detach()
        kept.numpy()[:] = 3.0
        assert bool((kept == 3.0).all())
        assert bool((module.weight == 3.0).all())


def test_memory_that_stays_is_not_given_away(both: Pair) -> None:
    weight = both.streamed.model.layers[0].mlp.up_proj.weight.detach()
    for give in (torch.utils.dlpack.to_dlpack, torch.from_dlpack, np.from_dlpack):
        with pytest.raises((penstock.PenstockError, RuntimeError), match=r"no address|Cannot access"):
            give(weight)


@pytest.mark.parametrize("path", ["model.embed_tokens", "model.layers.0.mlp.up_proj"])
def test_a_weight_that_is_there_already_is_itself(path: str, tmp_path: Path) -> None:
    """PEFT keeps the embeddings beside the model, and ``.to(device)`` of its model reaches them there."""
    with pair(tmp_path, "llama", "least") as both:
        module = both.streamed.get_submodule(path)
        weight, before = module.weight, both.streamed.penstock.stats().weights
        for same in (("cpu",), (torch.float32,), (torch.device("cpu"), torch.float32), (weight,), (torch.ones(1),)):
            assert weight.to(*same) is weight
        assert weight.to(device="cpu", dtype=torch.float32) is weight
        assert torch.ones(1, dtype=torch.float64).to(weight).dtype == torch.float32
        assert module.to("cpu") is module
        assert module.weight is weight
        after = both.streamed.penstock.stats().weights
        assert (after.demand_bytes, after.row_bytes) == (before.demand_bytes, before.row_bytes)
        assert both.same_logits()


def test_a_weight_in_another_dtype_is_a_copy(both: Pair) -> None:
    wanted, found = (model.model.layers[0].mlp.up_proj.weight for model in both)
    assert torch.equal(wanted.to(torch.float64), found.to(torch.float64))
    assert torch.equal(wanted, found.to(torch.float32, copy=True))
    with pytest.raises(TypeError):
        found.to("cpu", colour="blue")
