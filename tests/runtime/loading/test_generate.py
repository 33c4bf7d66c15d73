"""``generate`` in all its forms gives what transformers gives, on a budget that streams."""

import concurrent.futures
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TextStreamer

import penstock
from penstock.kernels.waiting import no_waiting
from penstock.runtime.engine.abandoned import ABANDONED
from penstock.runtime.loading import install
from tests.support.engines import engine_of
from tests.support.logits import IDS, least_budget, logits

SOON = 10.0
"""Seconds after which a test gives up on what should take no time."""

FORMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "repetition penalty": {"repetition_penalty": 1.3},
}


@pytest.fixture(scope="module", params=["tiny_moe_folder", "tiny_dense_folder"])
def pair(request: pytest.FixtureRequest, store: Path) -> Any:
    """transformers' model and ours, under the least budget, of one checkpoint."""
    folder = request.getfixturevalue(request.param)
    options = {"attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager", **options).eval()
    with penstock.load(folder, store=store, host_memory=least_budget(folder, store), **options) as model:
        yield reference, model


def run(model: PreTrainedModel, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    options = {"max_new_tokens": 12, "pad_token_id": 0} | options
    if "prompt_lookup_num_tokens" in options:
        return model.generate(IDS[:1].repeat(1, 2), **options)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0  # a batch with padding on the left
    return model.generate(IDS * mask, attention_mask=mask, **options)


@pytest.mark.parametrize("form", FORMS)
def test_generate_gives_the_same_tokens(pair: tuple[PreTrainedModel, PreTrainedModel], form: str) -> None:
    reference, model = pair
    assert torch.equal(run(reference, **FORMS[form]), run(model, **FORMS[form]))


def test_streamer_sees_every_token(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return " ".join(str(int(n)) for n in ids) + " "

    class Collect(TextStreamer):
        def __init__(self) -> None:
            super().__init__(Words())
            self.said: list[str] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.said.append(text)

    _, model = pair
    streamer = Collect()
    ids = model.generate(IDS[:1], max_new_tokens=6, streamer=streamer, pad_token_id=0)
    assert "".join(streamer.said).split() == [str(int(n)) for n in ids[0]]
    assert len(streamer.said) > 3


def test_several_threads_generate_at_once(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    reference, model = pair
    prompts = [IDS[:1, :length] for length in (3, 7, 11, 17)]
    options = {"max_new_tokens": 10, "pad_token_id": 0}
    expected = [reference.generate(prompt, **options) for prompt in prompts]
    found: list[Any] = [None] * len(prompts)

    def work(number: int) -> None:
        found[number] = model.generate(prompts[number], **options)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    engine_of(model).check_integrity()


def test_an_interrupted_forward_leaves_a_model_that_goes_on(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    reference, model = pair

    class Interrupt(TextStreamer):
        def __init__(self) -> None:
            self.left = 3

        def put(self, value: Any) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def end(self) -> None:
            """Nothing is printed."""

    with pytest.raises(KeyboardInterrupt):
        model.generate(IDS[:1], max_new_tokens=8, streamer=Interrupt(), pad_token_id=0)
    layer = model.model.layers[1]
    inside = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(IDS)
    inside.remove()
    assert all(torch.equal(a, b) for a, b in zip(logits(reference), logits(model), strict=True))
    engine_of(model).check_integrity()


def test_wrap_moves_a_built_model_out(tiny_moe_folder: Path, store: Path) -> None:
    built = AutoModelForCausalLM.from_pretrained(tiny_moe_folder, attn_implementation="eager").eval()
    built.set_experts_implementation("eager")
    for parameter in built.parameters():  # in memory of its own, like that of a model built by hand
        parameter.data = parameter.data.clone()
    expected = logits(built)
    gone = weakref.ref(built.model.layers[0].mlp.experts.gate_up_proj)
    with pytest.raises(penstock.BudgetTooSmall):
        penstock.wrap(built, store=store, host_memory=1)
    assert all(torch.equal(a, b) for a, b in zip(expected, logits(built), strict=True)), "the model was lost"
    model = penstock.wrap(built, store=store, host_memory=least_budget(tiny_moe_folder, store))
    assert model is built
    gc.collect()
    assert gone() is None, "the weights are still in memory"
    assert all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
    with pytest.raises(penstock.ConfigError, match="already wrapped"):
        penstock.wrap(model, store=store)
    model.penstock.close()


def test_a_model_is_collected_by_a_thread_that_must_not_wait(
    tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a reader's lock, say, and waiting for the bridge's is whoever has that one waiting for the reader's."""
    model = penstock.load(tiny_moe_folder, store=store, host_memory="64MiB")
    engine = engine_of(model)
    closed, collected = threading.Event(), threading.Event()
    real = engine.bundle.close
    monkeypatch.setattr(engine.bundle, "close", lambda: (real(), closed.set()))

    def collect() -> None:
        with no_waiting:
            engine.abandon()
        collected.set()

    with engine.bridge._lock:
        threading.Thread(target=collect, daemon=True).start()
        assert collected.wait(SOON)
        assert not closed.is_set()
    assert closed.wait(SOON)
    with pytest.raises(ValueError, match="closed"):
        engine.tier.arena.view(0, 0)


def test_a_model_is_collected_while_no_pool_can_start_a_thread(
    tiny_moe_folder: Path, store: Path, tmp_path: Path
) -> None:
    """The collector ran inside of a pool's ``submit``, whose lock the thread of our small files needs as well."""
    model = penstock.load(tiny_moe_folder, store=store, host_memory="64MiB")
    model.penstock.trace(tmp_path / "run.json")
    arena, before = engine_of(model).tier.arena, {*threading.enumerate()}
    collected = threading.Event()

    def collect() -> None:
        nonlocal model
        with concurrent.futures.thread._global_shutdown_lock:
            del model
            gc.collect()
            assert (tmp_path / "run.json").exists()
            collected.set()

    threading.Thread(target=collect, daemon=True).start()
    assert collected.wait(SOON)
    ABANDONED.wait()
    assert not [thread for thread in {*threading.enumerate()} - before if isinstance(thread, threading._DummyThread)]
    penstock.load(tiny_moe_folder, store=store, host_memory="64MiB").penstock.close()
    with pytest.raises(ValueError, match="closed"):
        arena.view(0, 0)


@pytest.mark.parametrize(("torchs", "usable", "wanted", "found"), [(3, 2, "auto", 2), (2, 3, "auto", 2), (1, 1, 3, 3)])
def test_torch_gets_no_more_threads_than_may_run(
    tiny_dense_folder: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    torchs: int,
    usable: int,
    wanted: int | str,
    found: int,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(install, "count_usable_cores", lambda: usable)
    try:
        torch.set_num_threads(torchs)
        with penstock.load(tiny_dense_folder, store=store, host_memory="1GiB", threads=wanted):
            assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(before)


def test_closed_model_says_so(tiny_moe_folder: Path, store: Path) -> None:
    model = penstock.load(tiny_moe_folder, store=store, host_memory="1GiB")
    model.penstock.close()
    model.penstock.close()
    with pytest.raises(penstock.Closed, match="load it again"):
        model(IDS)


def test_weights_that_are_not_in_memory_are_not_given_away(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    _, model = pair
    with pytest.raises(penstock.PenstockError, match="not in memory as a whole"):
        model.save_pretrained(tmp_path)
    assert model.to("cpu") is model
    assert model.cpu() is model
    for act in (model.half, lambda: model.to(torch.float16), model.share_memory):
        with pytest.raises(penstock.ConfigError, match="when loading"):
            act()


def test_a_mistyped_option_is_recognised_before_anything_is_packed(tiny_moe_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(penstock.ConfigError, match=r"hostmemory.*did you mean host_memory"):
        penstock.load(tiny_moe_folder, store=tmp_path / "store", hostmemory="1GiB")
    assert not (tmp_path / "store").exists()
    with pytest.raises(penstock.ConfigError, match=r"neither penstock nor transformers knows.*colour"):
        penstock.load(tiny_moe_folder, store=tmp_path / "store", colour="blue")


def test_a_setting_of_the_configuration_is_no_option(tiny_moe_folder: Path, tmp_path: Path) -> None:
    """transformers takes it; to say that nobody knows it would be wrong."""
    with pytest.raises(penstock.ConfigError, match=r"set tie_word_embeddings in the checkpoint's config\.json"):
        penstock.load(tiny_moe_folder, store=tmp_path / "store", tie_word_embeddings=False)


@pytest.mark.parametrize("option", [{"experts_implementation": "grouped_mm"}, {"device_map": "auto"}])
def test_options_that_contradict_streaming_are_refused(
    option: dict[str, str], tiny_moe_folder: Path, store: Path
) -> None:
    with pytest.raises(penstock.ConfigError):
        penstock.load(tiny_moe_folder, store=store, **option)
