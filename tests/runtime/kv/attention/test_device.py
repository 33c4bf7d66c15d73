"""Paged KV of a model that computes on a device: the newest pages lie there, attention is computed where pages are.

The model says what transformers says, on the emulated device, with a sixth of its KV there and a sixth in memory.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.kernels.devices.copies import Copies, WaitForCopy
from penstock.kernels.devices.emulated import Emulated
from penstock.kernels.memory.arena import Arena
from penstock.runtime.config.config import Config
from penstock.runtime.loading.openings.kv_memory import kv_device_bytes
from penstock.tiering.policy.placement.placement import with_working_memory
from penstock.tiering.units import GiB, MiB
from tests.support.decoding import GREEDY, are_close, assert_says_the_same, decode, page_bytes, step_through
from tests.support.paged import TOKENS, paged, settle, tier_of
from tests.support.tiny_models import save_tiny

PROMPT, MORE, STEPS = 40, 60, 30
IDS = torch.randint(3, 300, (2, PROMPT + MORE), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[0, :20] = 0
CHUNKS = torch.randint(3, 300, (2, 60), generator=torch.Generator().manual_seed(1))
ON_DEVICE: dict[str, Any] = {"device": "emulated", "device_memory": "64MiB"}

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},
    "gemma3_text": {"sliding_window": 70},
    "gpt_oss": {"sliding_window": 70},
    "deepseek_v3": {"num_hidden_layers": 2},
    "qwen3_next": {},
}


def books(model: PreTrainedModel) -> None:
    """Wait until nothing is copied, read or written any more, and look at the books."""
    tier = tier_of(model)
    settle(tier.pool)
    tier.pool.check_integrity()


CASES = [
    *(pytest.param(name, torch.float32, id=f"{name}-float32") for name in KINDS),
    pytest.param("llama", torch.bfloat16, id="llama-bfloat16"),
    *(pytest.param(name, torch.bfloat16, id=f"{name}-bfloat16", marks=pytest.mark.soak) for name in [*KINDS][1:]),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_it_says_the_same(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name, dtype, max_position_embeddings=256, **KINDS[name])
    options = {"attn_implementation": "eager", "experts_implementation": "eager"}
    truth = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    prompt = IDS.split((PROMPT, MORE), 1)
    wanted, best = decode(truth, prompt, STEPS, mask=PADDED)
    with paged(folder, tmp_path / "store", "1MiB", **ON_DEVICE) as model:
        all_ = page_bytes(model, len(IDS), PROMPT + MORE + STEPS)
    budgets = {"kv": all_ // 6, "kv_device_memory": all_ // 6}
    with paged(folder, tmp_path / "store", **budgets, **ON_DEVICE) as model:
        tier_of(model).staging = 0  # nothing is left to the module's own attention
        found, _ = decode(model, prompt, STEPS, mask=PADDED, tokens=best[:, 1:])
        books(model)
        stats = model.penstock.stats()
    assert stats.kv_device_budget == all_ // 6 // 4096 * 4096
    assert stats.kv_pages_up * 4096 > stats.kv_device_budget, "pages came and went"
    assert stats.kv_pages_read > STEPS, "the context fitted: the test shows nothing"
    assert_says_the_same(found, wanted, dtype)


# --- how it is used ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3: layers with a window, and without."""
    kinds = ["sliding_attention", "full_attention"]
    at = tmp_path_factory.mktemp("kv") / "gemma3"
    return save_tiny("gemma3_text", at, num_hidden_layers=2, layer_types=kinds, max_position_embeddings=256)


@pytest.fixture(scope="module")
def truth(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture
def model(folder: Path, store: Path) -> Iterator[PreTrainedModel]:
    """With memory for a third of two contexts, and room on the device for a third; all of it is given back."""
    with paged(folder, store, "128KiB", kv_device_memory="128KiB", **ON_DEVICE) as model:
        tier_of(model).staging = 0
        yield model
        books(model)
        stats = model.penstock.stats()
        assert (stats.kv_host_bytes, stats.kv_device_bytes, stats.kv_flash_bytes) == (0, 0, 0)
        assert stats.kv_pages_up > 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 4}], ids=str)
def test_generate(model: PreTrainedModel, truth: PreTrainedModel, options: dict[str, Any]) -> None:
    """Beams share pages; looked-up tokens are taken back."""
    ids = CHUNKS[:1].repeat(1, 2)[:, :90] if options else CHUNKS
    assert torch.equal(model.generate(ids, **GREEDY, **options), truth.generate(ids, **GREEDY, **options))


@pytest.mark.parametrize("size", [13, 16, 40])
def test_a_prompt_in_chunks(model: PreTrainedModel, truth: PreTrainedModel, size: int) -> None:
    """Few rows of queries, and many, behind pages that are on the device and pages that are not."""
    past, found = None, []
    with torch.no_grad():
        for chunk in CHUNKS.repeat(1, 2).split(size, 1):
            out = model(chunk, past_key_values=past, use_cache=True)
            past = out.past_key_values
            found.append(out.logits)
        assert are_close(torch.cat(found, 1), truth(CHUNKS.repeat(1, 2)).logits)


def test_keys_and_values_can_be_looked_at(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    with torch.no_grad():
        mine, theirs = (m(CHUNKS, use_cache=True).past_key_values for m in (model, truth))
    for layer, other in zip(mine.layers, theirs.layers, strict=True):
        assert are_close(layer.keys, other.keys)
        assert are_close(layer.values, other.values)


def test_the_module_s_own_attention_gets_them_too(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    tier_of(model).staging = 8 << 20
    assert are_close(step_through(model, CHUNKS, steps=5), step_through(truth, CHUNKS, steps=5))


def test_several_caches_at_once(folder: Path, store: Path, truth: PreTrainedModel, restless: None) -> None:
    """Pages of one come while another looks at its own."""
    prompts = [CHUNKS.roll(turn, 1) for turn in range(3)]
    wanted = [step_through(truth, ids) for ids in prompts]
    found: dict[int, torch.Tensor] = {}
    with paged(folder, store, "512KiB", kv_device_memory="160KiB", **ON_DEVICE) as model:
        tier_of(model).staging = 0

        def work(number: int) -> None:
            found[number] = step_through(model, prompts[number])

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        books(model)
    assert all(are_close(found[number], wanted[number]) for number in range(len(prompts)))


def test_what_is_on_the_device_is_not_read(tiny_dense_folder: Path, store: Path) -> None:
    """With room for all pages there, memory for hardly any: decoding reads nothing, and copies nothing up again."""
    with paged(tiny_dense_folder, store, "96KiB", kv_device_memory="1MiB", **ON_DEVICE) as model, torch.no_grad():
        tier_of(model).staging = 0
        out = model(IDS, use_cache=True)
        books(model)
        before = model.penstock.stats()
        pages = 2 * 2 * 2 * (IDS.shape[1] // TOKENS)  # planes of full pages
        assert before.kv_pages_up == pages
        assert before.kv_bytes_up == before.kv_device_bytes == 4096 * pages
        assert before.kv_flash_bytes > 0
        for step in range(5):
            out = model(IDS[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        after = model.penstock.stats()
    assert (after.kv_pages_read, after.kv_bytes_up) == (before.kv_pages_read, before.kv_bytes_up)


def test_a_prompt_behind_pages_has_them_copied_up(tiny_dense_folder: Path, store: Path) -> None:
    """In each of the two sweeps, those that are not there."""
    with paged(tiny_dense_folder, store, "512KiB", kv_device_memory=0, **ON_DEVICE) as model, torch.no_grad():
        tier_of(model).staging = 0
        past = model(IDS[:, :64], use_cache=True).past_key_values
        assert model.penstock.stats().kv_bytes_up == 0
        model(IDS[:, 64:], past_key_values=past, use_cache=True)
        stats = model.penstock.stats()
    numbers = 2 * 64 * model.config.num_key_value_heads * model.config.hidden_size // model.config.num_attention_heads
    assert stats.kv_bytes_up == 2 * 2 * 2 * numbers * 4  # sweeps, layers, keys and values
    assert (stats.kv_device_budget, stats.kv_pages_up) == (0, 0)


def test_a_copy_that_fails_leaves_its_pages_below(model: PreTrainedModel, truth: PreTrainedModel) -> None:
    """What only passes cannot do without: that is an error, and the cache is as it was."""
    tier, count, every = tier_of(model), 0, 3
    assert tier.device_pages is not None

    def begin(source: torch.Tensor, target: torch.Tensor, after: Any) -> WaitForCopy:
        def wait() -> None:
            nonlocal count
            count += 1
            if count % every == 0:
                raise OSError("injected")
            target.copy_(source)

        return wait

    tier.device_pages._copies.close()
    tier.device_pages._copies = Copies(begin)
    past, theirs = (m(CHUNKS, use_cache=True).past_key_values for m in (model, truth))
    for token in CHUNKS.split(1, 1)[:40]:
        assert are_close(step_through(model, token, past, 0), step_through(truth, token, theirs, 0))
    assert 0 < model.penstock.stats().kv_pages_up < count
    every = 1
    with pytest.raises(penstock.ReadError, match="cannot be copied to emulated"), torch.no_grad():
        model(CHUNKS[:, :20], past_key_values=past)
    every = 1000
    assert are_close(step_through(model, CHUNKS[:, :20], past, 3), step_through(truth, CHUNKS[:, :20], theirs, 3))


def test_transformers_own_cache_is_on_the_device(folder: Path, store: Path, truth: PreTrainedModel) -> None:
    options = {"host_memory": "64MiB", "attn_implementation": "eager", **ON_DEVICE}
    with penstock.load(folder, store=store, **options) as model:
        assert torch.equal(step_through(model, CHUNKS), step_through(truth, CHUNKS))
        assert model.penstock.stats().kv_device_budget == 0


# --- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_memory": "auto"}, r"\[kv\] device = 1.00 MiB is for a device; name it in"),
        ({"kv_host_memory": "auto"}, r"set \[kv\] host"),
        ({"kv_attention": "certified"}, r'take it out, or \[kv\] attention = "certified"'),
        ({"kv_attention": "h2o"}, r'attention = "h2o"'),
        ({"kv_format": "int8"}, r'format = "int8"'),
    ],
)
def test_what_does_not_go_together(folder: Path, store: Path, options: dict[str, Any], message: str) -> None:
    given = {"kv_host_memory": "1MiB", "kv_device_memory": "1MiB", **ON_DEVICE, **options}
    with pytest.raises(penstock.ConfigError, match=message):
        penstock.load(folder, store=store, host_memory="64MiB", **given)


@pytest.mark.parametrize("size", ["1000KiB", "8MiB"])
def test_too_much_for_pages(folder: Path, store: Path, size: str) -> None:
    options = {**ON_DEVICE, "device_memory": "1MiB", "kv_device_memory": size}
    takes = rf"\[kv\] device takes {float(size[:-3]):.2f} {size[-3:]} of device_memory besides$"
    with pytest.raises(penstock.BudgetTooSmall, match=takes) as refused:
        penstock.load(folder, store=store, host_memory="64MiB", kv_host_memory="1MiB", **options)
    assert "is -" not in str(refused.value)


def test_a_device_without_room_for_pages_leaves_nothing_behind(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Emulated, length: int) -> Arena:
        raise MemoryError

    monkeypatch.setattr(Emulated, "arena", full)
    before = {*threading.enumerate()}
    with pytest.raises(penstock.DeviceFull, match=r"for \[kv\] device in one piece"):
        penstock.load(folder, store=store, host_memory="64MiB", kv_host_memory="1MiB", **ON_DEVICE)
    assert {*threading.enumerate()} <= before


def test_chosen_attention_stays_below(tiny_dense_folder: Path, store: Path) -> None:
    """Certified attention has no pages on the device, and is computed as without one."""
    said = []
    for options in ({}, ON_DEVICE):
        with paged(tiny_dense_folder, store, "512KiB", kv_attention="certified", **options) as model:
            said.append(step_through(model, IDS, steps=8))
            assert model.penstock.stats().kv_device_budget == 0
    assert torch.equal(*said)


def test_auto_is_what_weights_leave() -> None:
    on = Config.load(device="emulated", kv_host_memory="1GiB")
    written = on.override(device_memory="2GiB")
    assert kv_device_bytes(on, GiB) == 0, "of memory that nobody gave"
    assert kv_device_bytes(written, GiB) == 2 * GiB - with_working_memory(GiB)
    assert kv_device_bytes(written, 3 * GiB) == 0
    assert kv_device_bytes(written.override(kv_host_memory="auto"), GiB) == 0
    assert kv_device_bytes(written.override(kv_attention="quest"), GiB) == 0
    assert kv_device_bytes(written.override(kv_format="int4"), GiB) == 0
    assert kv_device_bytes(written.override(kv_device_memory="1MiB"), 3 * GiB) == MiB
    assert kv_device_bytes(written.override(kv_device_memory=0), GiB) == 0
