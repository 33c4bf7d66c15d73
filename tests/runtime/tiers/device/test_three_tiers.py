"""A device above host memory above flash: bit for bit what transformers computes, though no tier holds the model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import penstock
from penstock.tiering.units import parse_size
from tests.support.device_tiers import check, equal, on_device, reference, tight
from tests.support.engines import engine_of
from tests.support.logits import logits
from tests.support.tiny_models import EXPERT_NAMES, NAMES, save_tiny

PROMPT = torch.tensor([[5, 17, 101, 9, 5, 17, 101, 9, 5, 17]])
FAST = {("llama", torch.float32), ("qwen3_moe", torch.float32), ("gpt_oss", torch.bfloat16), ("opt", torch.bfloat16)}
CASES = [
    pytest.param(name, dtype, id=f"{name}-{dtype}", marks=[] if (name, dtype) in FAST else pytest.mark.soak)
    for name in NAMES
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products on a busy machine only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def moe(tiny_moe_folder: Path) -> list[torch.Tensor]:
    """What transformers computes for the tiny mixture of experts."""
    return logits(reference(tiny_moe_folder))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_logits_equal_those_of_transformers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder, store = save_tiny(name, tmp_path / name, dtype), tmp_path / "store"
    expected = logits(reference(folder))
    for device, host in ((0.0, 0.0), (0.4, 0.3)):
        with tight(folder, store, device, host) as model:
            assert equal(expected, model), (device, host)
            check(model)
            engine = engine_of(model)
            assert engine.tier.placement.streamed or engine.tier.placement.expert_share < 1, "the device holds it all"
            assert engine.host_placement.streamed or engine.host_placement.expert_share < 1, "the host holds the rest"
            if name in EXPERT_NAMES and not device:
                assert engine.host.counters().evictions > 0
                assert engine.bridge.counters().evictions > 0


def test_a_device_with_room_for_all_reads_everything_once(
    tiny_moe_folder: Path, store: Path, moe: list[torch.Tensor]
) -> None:
    with on_device(tiny_moe_folder, store, device_memory="64MiB", host_memory="64MiB") as model:
        assert equal(moe, model)
        check(model)
        assert model.penstock.device_placement.streamed == ()
        assert engine_of(model).bridge.counters().evictions == 0


def test_each_tier_has_its_own_budget(tiny_moe_folder: Path, store: Path) -> None:
    with on_device(tiny_moe_folder, store, device_memory="64MiB", host_memory="48MiB") as model:
        stats = model.penstock.stats()
        assert (stats.device_budget, stats.host_budget) == (64 << 20, 48 << 20)
        assert stats.resident_bytes <= stats.host_bytes <= stats.host_budget


def test_a_host_with_room_for_the_rest_reads_it_once(
    tiny_moe_folder: Path, store: Path, moe: list[torch.Tensor]
) -> None:
    with tight(tiny_moe_folder, store, device=0.0, host=3.0) as model:
        assert equal(moe, model)
        assert engine_of(model).host.counters().evictions == 0
        assert engine_of(model).bridge.counters().evictions > 0
        before = model.penstock.stats().flash_bytes_read
        assert equal(moe, model)
        rows = 2 * parse_size("64KiB")  # of an embedding, which are read as they come
        assert model.penstock.stats().flash_bytes_read - before <= rows


@pytest.mark.usefixtures("restless")
def test_several_threads_on_one_model(tiny_moe_folder: Path, store: Path, moe: list[torch.Tensor]) -> None:
    with tight(tiny_moe_folder, store, 0.1, 0.1) as model, ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: equal(moe, model), range(6)))
        check(model)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "prompt lookup"])
def test_text_is_that_of_transformers(tiny_moe_folder: Path, store: Path, options: dict[str, int]) -> None:
    def generate(model: PreTrainedModel) -> torch.Tensor:
        found: torch.Tensor = model.generate(
            PROMPT, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, **options
        )
        return found

    expected = generate(reference(tiny_moe_folder))
    with tight(tiny_moe_folder, store) as model:
        assert torch.equal(expected, generate(model))
        check(model)


@pytest.mark.parametrize("options", [
    {"weights_experts": "int8"},
    {"weights_experts": "lossless", "weights_dense": "lossless"},
    {"weights_format": "nested", "weights_quality": "full"},
], ids=["int8", "lossless", "nested"])  # fmt: skip
def test_other_formats_are_what_they_are_on_the_cpu(tmp_path: Path, options: dict[str, str]) -> None:
    folder, store = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16), tmp_path / "store"
    with penstock.load(folder, store=store, host_memory="64MiB", attn_implementation="eager", **options) as model:
        expected = logits(model)
    with tight(folder, store, **options) as model:
        assert equal(expected, model)
        check(model)


def test_planes_as_there_is_time_for_them(tmp_path: Path) -> None:
    """Not the same bits from run to run; but every plane that is computed with is the right one."""
    folder, store = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16), tmp_path / "store"
    options = {"weights_format": "nested", "weights_quality": "adaptive"}
    with tight(folder, store, device=0.5, host=0.5, **options) as model:
        found = logits(model)
        check(model)
        assert all(torch.isfinite(each).all() for each in found)
        assert model.penstock.stats().refine_failures == 0


def test_wrapped(tiny_dense_folder: Path, tmp_path: Path) -> None:
    built = reference(tiny_dense_folder)
    expected = logits(built)
    with penstock.wrap(built, store=tmp_path, device="emulated", device_memory=250_000, host_memory=100_000) as model:
        assert equal(expected, model)
        assert model.penstock.device_placement.streamed
        check(model)
