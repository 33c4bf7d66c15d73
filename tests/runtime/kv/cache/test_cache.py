"""A paged cache is used as transformers' own, whatever is done with it; and nothing of it is left when it is gone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.kernels.kv.as_is import AsIs
from penstock.runtime.kv.cache.cache import PagedCache
from tests.support.decoding import GREEDY, are_close, step_through
from tests.support.paged import has_lost_tokens, paged, settle, tier_of
from tests.support.tiny_models import save_tiny

KiB = 1 << 10
IDS = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3: layers with a window, and without."""
    return save_tiny(
        "gemma3_text", tmp_path_factory.mktemp("kv") / "gemma3", layer_types=TYPES, max_position_embeddings=256
    )


TYPES = ["sliding_attention", "full_attention", "full_attention"]


@pytest.fixture(scope="module")
def truth(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture
def model(folder: Path, store: Path) -> Iterator[PreTrainedModel]:
    """With memory for a third of two contexts, and no staging; every page is given back in the end."""
    with paged(folder, store, "256KiB") as model:
        tier_of(model).staging = 0
        yield model
        pool = tier_of(model).pool
        settle(pool)
        usage = pool.usage()
        assert (usage.host_bytes, usage.flash_bytes) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}, {"prompt_lookup_num_tokens": 4}, {}],
    ids=["beams", "returned", "lookup", "greedy"],
)
def test_generate(model: PreTrainedModel, truth: PreTrainedModel, options: dict[str, Any]) -> None:
    ids = IDS[:1].repeat(1, 2) if "prompt_lookup_num_tokens" in options else IDS
    assert torch.equal(model.generate(ids, **GREEDY, **options), truth.generate(ids, **GREEDY, **options))


def test_an_assistant(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    found = model.generate(IDS[:1], **GREEDY, assistant_model=truth)
    assert torch.equal(found, truth.generate(IDS[:1], **GREEDY))


def test_tokens_are_taken_back(tiny_dense_folder: Path, store: Path) -> None:
    def cropped(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            past = model(IDS, use_cache=True).past_key_values
            logits = []
            for tokens in (-9, -33, -1, -16):
                past.crop(tokens)
                logits.append(step_through(model, IDS[:, :30], past, 3))
        return torch.cat(logits, 1)

    truth = AutoModelForCausalLM.from_pretrained(tiny_dense_folder, attn_implementation="eager").eval()
    with paged(tiny_dense_folder, store, "256KiB") as model:
        tier_of(model).staging = 0
        assert are_close(cropped(model), cropped(truth))
        settle(tier_of(model).pool)
        assert tier_of(model).pool.usage().host_bytes == 0


def test_a_prompt_in_chunks(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    for size in (1, 13, 16, 17, 40):
        past, found = None, []
        with torch.no_grad():
            for chunk in IDS.split(size, 1):
                out = model(chunk, past_key_values=past, use_cache=True)
                past = out.past_key_values
                found.append(out.logits)
            assert are_close(torch.cat(found, 1), truth(IDS).logits)


def test_rows_are_chosen_and_repeated(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    def moved(model: PreTrainedModel) -> torch.Tensor:
        with torch.no_grad():
            past = model(IDS, use_cache=True).past_key_values
            past.batch_repeat_interleave(2)
            past.reorder_cache(torch.tensor([3, 0, 2, 1]))
            four = IDS.repeat_interleave(2, 0)
            logits = step_through(model, four, past, 20)
            past.batch_select_indices(torch.tensor([0, 3]))
            return torch.cat(
                [logits[:2], logits[2:], step_through(model, IDS, past, 5).repeat(1, 2, 1)[:, : logits.shape[1]]]
            )

    assert are_close(moved(model), moved(truth))


def test_keys_and_values_can_be_looked_at(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    with torch.no_grad():
        mine, theirs = (m(IDS, use_cache=True).past_key_values for m in (model, truth))
    assert isinstance(mine, PagedCache)
    for layer, other in zip(mine.layers, theirs.layers, strict=True):
        assert are_close(layer.keys, other.keys)
        assert are_close(layer.values, other.values)
        assert layer.get_seq_length() == other.get_seq_length() == 60
    assert PagedCache(tier_of(model), model.config).layers[0].keys is None


def test_a_cache_begins_anew(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    past = PagedCache(tier_of(model), model.config)
    step_through(model, IDS, past)
    past.reset()
    assert past.get_seq_length() == 0
    assert are_close(step_through(model, IDS[:1], past), step_through(truth, IDS[:1])), "of another batch size, even"


def test_several_caches_at_once(folder: Path, store: Path, truth: PreTrainedModel, restless: None) -> None:
    """More threads than there is room to pass for: they wait for each other, and end."""
    prompts = [IDS.roll(turn, 1) for turn in range(4)]
    wanted = [step_through(truth, ids) for ids in prompts]
    found: dict[int, torch.Tensor] = {}
    with paged(folder, store, "512KiB") as model:
        tier_of(model).staging = 0

        def work(number: int) -> None:
            found[number] = step_through(model, prompts[number])

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        settle(tier_of(model).pool)
        assert tier_of(model).pool.usage().counters.pages_read > 1000
    assert sorted(found) == [0, 1, 2, 3]
    assert all(are_close(found[number], wanted[number]) for number in found)


# --- what is not possible -------------------------------------------------------------------------------------------


def test_another_model_s_cache_is_refused(model: PreTrainedModel, tiny_dense_folder: Path, store: Path) -> None:
    past = model(IDS, use_cache=True).past_key_values
    with (
        paged(tiny_dense_folder, store, "256KiB") as other,
        pytest.raises(penstock.ConfigError, match="belongs to another model"),
    ):
        other(IDS[:, :1], past_key_values=past)
    assert past.get_seq_length() == 60


def test_another_batch_is_refused(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    past = model(IDS, use_cache=True).past_key_values
    with pytest.raises(penstock.ConfigError, match=r"2 sequences .* not 1 .* begin with a new one"):
        model(IDS[:1, :1], past_key_values=past)
    wanted = truth(IDS, use_cache=True).past_key_values
    assert are_close(step_through(model, IDS, past), step_through(truth, IDS, wanted)), "the cache is as before"


def test_a_context_beyond_the_positions_is_refused(model: PreTrainedModel) -> None:
    past = model(IDS.repeat(1, 4), use_cache=True).past_key_values
    with pytest.raises(penstock.PromptTooLong, match="256 positions; 240 tokens are cached and 17 more do not fit"):
        model(IDS[:, :17], past_key_values=past)
    model(IDS[:, :16], past_key_values=past)


@pytest.mark.parametrize("kind", [penstock.ReadError, penstock.FlashFull, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["fetch", "new", "weigh", "layer"])
def test_a_forward_that_fails_is_taken_back(
    model: PreTrainedModel,
    truth: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[BaseException],
    where: str,
) -> None:
    """Whatever it has done already; and the same cache goes on."""
    pool, past = tier_of(model).pool, PagedCache(tier_of(model), model.config)
    targets = {"weigh": (AsIs, "weigh"), "layer": (type(model.model.layers[0]), "forward")}
    target, name = targets.get(where, (pool, where))
    original = getattr(target, name)
    failed = 0
    for before, tokens, calls in [(0, 40, 1), (0, 40, 3), (60, 1, 1), (60, 15, 3), (60, 16, 5), (60, 40, 2)]:
        if past.get_seq_length() != before:
            past = PagedCache(tier_of(model), model.config)
            if before:
                step_through(model, IDS, past, 0)
        left = calls

        def fail(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise kind("injected")
            return original(*arguments, **options)

        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(target, name, fail)
            try:
                model(IDS[:, :tokens], past_key_values=past, use_cache=True)
            except kind:
                failed += 1
                assert past.get_seq_length() == before
        pool.check_integrity()
    if past.get_seq_length() != 60:
        past = PagedCache(tier_of(model), model.config)
        step_through(model, IDS, past, 0)
    assert failed >= 1
    assert not has_lost_tokens(past)
    theirs = truth(IDS, use_cache=True).past_key_values
    assert are_close(step_through(model, IDS, past, 3), step_through(truth, IDS, theirs, 3))


def test_recurrent_states_cannot_be_taken_back(tmp_path: Path, store: Path) -> None:
    """Even where nothing paged was touched yet: what was computed on is lost, and that is said."""
    folder = save_tiny("qwen3_next", tmp_path / "model")
    with paged(folder, store, "1MiB") as model, torch.no_grad():
        past = model(IDS, use_cache=True).past_key_values

        def fail(*_: Any) -> None:
            raise penstock.ReadError("injected")

        hook = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(penstock.ReadError, match="injected"):
            model(IDS[:, :1], past_key_values=past)
        hook.remove()
        with pytest.raises(penstock.PenstockError, match="compute the context again in a new one"):
            model(IDS[:, :1], past_key_values=past)
        past.reset()
        assert torch.equal(model(IDS, past_key_values=past).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "setting",
    [{"kv_attention": "certified"}, {"kv_attention": "h2o"}, {"kv_format": "int8"}, {"kv_flash_limit": 1 << 20}],
)
def test_what_only_pages_have_needs_memory_for_pages(setting: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(penstock.ConfigError, match="set \\[kv\\] host"):
        penstock.load(folder, store=tmp_path, **setting)
