"""Recording routing: what the routers and experts of many architectures really do, streamed or in memory."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import penstock
from penstock.runtime.routing.profiling import RoutingRecording, probabilities_in, profile
from penstock.tiering.errors import Closed, TraceError
from tests.support.tiny_models import EXPERT_NAMES, tiny_config

IDS = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def built(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name)).eval()


@pytest.mark.parametrize("name", EXPERT_NAMES)
def test_every_family_shows_its_routers(name: str) -> None:
    model = built(name)
    seen: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[1]))
    routes = profile(model, IDS, window=16, text="numbers")
    assert (routes.model_type, routes.text, routes.tokens) == (model.config.model_type, "numbers", len(IDS))
    assert routes.forwards == routes.sequences == (16, 16, 8)
    assert [layer.path for layer in routes.layers] == list(seen)
    for layer in routes.layers:
        np.testing.assert_array_equal(layer.chosen, torch.cat(seen[layer.path]).numpy())
        probabilities = layer.probabilities()
        assert probabilities is not None
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=0.03)
        if name != "deepseek_v3":  # its experts are also chosen by groups
            least = np.take_along_axis(probabilities, layer.chosen.astype(int), axis=1).min(axis=1)
            rest = np.where(layer.used(), 0, probabilities).max(axis=1)
            assert (least >= rest).all(), "the likeliest experts are used"


def test_probabilities_are_the_softmax_of_the_routers_scores() -> None:
    model = built("qwen3_moe")
    routes = profile(model, IDS, window=len(IDS))
    with torch.no_grad():
        scores = model(torch.tensor([IDS]), output_router_logits=True).router_logits
    for layer, expected in zip(routes.layers, scores, strict=True):
        np.testing.assert_allclose(layer.probabilities(), expected.softmax(-1).numpy(), rtol=0.03)
        np.testing.assert_array_equal(np.sort(layer.chosen), expected.topk(2).indices.sort().values.numpy())


def test_a_router_may_give_probabilities_or_nothing_to_be_read() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0]])
    given = probabilities_in((torch.tensor([[1, 2, 0]]), scores.softmax(-1), scores), 3)
    np.testing.assert_allclose(given, scores.softmax(-1))
    np.testing.assert_allclose(probabilities_in(scores, 3), scores.softmax(-1))
    assert probabilities_in((torch.tensor([[1, 2, 0]]), torch.rand(1, 2), None), 3) is None


def test_what_no_router_is_found_for_is_recorded_without_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.routing.profiling.router_of", lambda model, path: None)
    routes = profile(built("mixtral"), IDS, window=20)
    assert [layer.codes for layer in routes.layers] == [None, None]
    assert routes.tokens == len(IDS)


def test_every_sequence_begins_as_the_model_wants_it() -> None:
    model = built("mixtral")
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].tolist()))
    done: list[int] = []
    routes = profile(model, IDS, window=16, first=[1], advance=done.append)
    assert seen == [[1, *IDS[:15]], [1, *IDS[15:30]], [1, *IDS[30:]]]
    assert routes.sequences == (16, 16, 11)
    assert done == [15, 15, 10]


def test_generating_is_recorded_as_a_prompt_and_single_tokens(tiny_moe_folder: Path, store: Path) -> None:
    """And token for token as if all were read at once, streamed or not."""
    with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB") as model:
        with model.penstock.profile("run") as recording:
            out = [
                model.generate(torch.tensor([IDS[:length]]), max_new_tokens=6, do_sample=False, eos_token_id=None)
                for length in (5, 9)
            ]
        model(torch.tensor([IDS]))
        routes = recording.routes()
    assert routes.sequences == (10, 14)
    assert routes.forwards == (5, 1, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1)
    plain = AutoModelForCausalLM.from_pretrained(tiny_moe_folder)
    at_once = [profile(plain, ids[0, :-1].tolist(), window=99) for ids in out]
    for number, layer in enumerate(routes.layers):
        expected = np.concatenate([each.layers[number].chosen for each in at_once])
        assert (np.sort(layer.chosen) == np.sort(expected)).mean() > 0.99  # a tie may fall the other way


def test_a_chunked_prompt_is_one_sequence() -> None:
    model, cache = built("qwen3_moe"), DynamicCache()
    with RoutingRecording(model) as recording, torch.no_grad():
        for start, end in pairwise((0, 10, 11, 30)):
            model(input_ids=torch.tensor([IDS[start:end]]), past_key_values=cache)
    assert recording.routes().forwards == (10, 1, 19)
    assert recording.routes().sequences == (30,)


def test_several_sequences_at_once_are_refused() -> None:
    model = built("mixtral")
    with RoutingRecording(model), pytest.raises(TraceError, match="one sequence at a time, not of 2"):
        model(torch.tensor([IDS, IDS]))


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(TraceError, match="no experts"):
        RoutingRecording(built("llama"))


def test_nothing_recorded_is_said() -> None:
    with RoutingRecording(built("mixtral")) as recording, pytest.raises(TraceError, match="nothing was recorded"):
        recording.routes()


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = built("mixtral")
    with RoutingRecording(model) as recording:
        handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.tensor([IDS[:7]]))
        handle.remove()
        model(torch.tensor([IDS[:5]]))
    assert recording.routes().forwards == (5,)


def test_a_closed_model_says_so(tiny_moe_folder: Path, store: Path) -> None:
    model = penstock.load(tiny_moe_folder, store=store, host_memory="1GiB")
    model.penstock.close()
    with pytest.raises(Closed, match="record its routing"):
        model.penstock.profile()


def test_threads_are_kept_apart() -> None:
    model, cache = built("mixtral"), DynamicCache()
    with RoutingRecording(model) as recording, ThreadPoolExecutor(1) as other, torch.no_grad():
        model(torch.tensor([IDS[:10]]), past_key_values=cache)
        other.submit(model, torch.tensor([IDS[:7]])).result()
        model(torch.tensor([IDS[10:11]]), past_key_values=cache)
    assert recording.routes().forwards == (10, 1, 7)
    assert recording.routes().sequences == (11, 7)


class Picky(torch.nn.Module):
    """A model whose experts see only some of the tokens."""

    class Experts(torch.nn.Module):
        num_experts, is_transposed, has_bias, has_gate, _apply_gate = 4, False, False, False, None

        def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
            return hidden

    def __init__(self) -> None:
        super().__init__()
        self.experts = self.Experts()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(input_ids.shape[1] - 1, 8)
        return self.experts(hidden, top_k_index=torch.zeros(len(hidden), 2, dtype=torch.int64), top_k_weights=None)


def test_experts_that_see_only_some_tokens_are_refused() -> None:
    model = Picky()
    with RoutingRecording(model), pytest.raises(TraceError, match=r"experts was given 4 of 5 tokens"):
        model(torch.tensor([IDS[:5]]))
