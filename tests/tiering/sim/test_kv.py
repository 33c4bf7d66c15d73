"""Streams with a long context: the planner of real runs decides which pages of KV they read, and when."""

from collections.abc import Sequence
from typing import Any

import pytest

from penstock.tiering.errors import BudgetTooSmall
from penstock.tiering.kv.page_size import choose_page_tokens
from penstock.tiering.kv.setup import KVSetup
from penstock.tiering.planner.setup import Setup
from penstock.tiering.sim import kv
from penstock.tiering.sim.devices import Drive, Memory
from penstock.tiering.sim.kv import Context, KVLayer
from penstock.tiering.sim.noise import Noise
from penstock.tiering.sim.outcome import Outcome
from penstock.tiering.sim.simulator import simulate
from penstock.tiering.sim.workload import Layer, Pass, Workload
from penstock.tiering.units import PAGE, KiB, MiB

DRIVE, MEMORY = Drive(2.6e9, latency=1e-4, contention=0.25, checksum=5e9), Memory(20e9)
LLAMA = 22
"""Layers of a Llama whose 4 KV heads of 64 take 512 bytes of keys, and of values, for each token."""


def llama(length: int, host: int | None, layers: int = LLAMA) -> Context:
    if host is None:
        return Context([KVLayer(512, 512, 1)] * layers, length, None)
    tokens = choose_page_tokens([512, 512], host, layers)
    return Context([KVLayer(512 * tokens, 512 * tokens, tokens)] * layers, length, KVSetup(host))


def run(context: Context, *, streams: int = 1, tokens: int = 4, drive: Drive = DRIVE, **options: Any) -> Outcome:
    """Some tokens of a model whose weights are all there, behind ``context``, after two that do not count."""
    setup = Setup({}, {}, {}, [], "lru", depth=4, read_limit=MiB)
    layers = [Layer(seconds=1e-3, kv=(number,)) for number in range(len(context.layers))]
    passes: Sequence[Sequence[Pass]] = [[Pass(1)] * (2 + tokens)] * streams
    workload = Workload(layers, passes, context=context)
    return simulate(workload, setup.planner(), drives=[drive], memory=MEMORY, untimed=2, **options)


@pytest.mark.parametrize(("length", "read"), [(8192, 145.8e6), (8448, 145.8e6), (16384, 330e6)])
def test_a_token_reads_what_real_runs_were_measured_to_read(length: int, read: float) -> None:
    """docs/explanation/plan.md and kv.md have the runs."""
    outcome = run(llama(length, 64 * MiB))
    assert outcome.kv_bytes_read / outcome.tokens == pytest.approx(read, rel=2e-3)


def test_what_fits_is_not_read() -> None:
    outcome = run(llama(16384, 1024 * MiB))
    assert outcome.kv_bytes_read == 0
    assert outcome.stall_seconds == 0
    assert outcome.limited_by == "memory"


def test_cores_take_the_time_of_all_kv() -> None:
    with_pages, without = run(llama(8192, 1024 * MiB)), run(llama(8192, None))
    assert without.compute_seconds == pytest.approx(4 * (LLAMA * 1e-3 + 8192 * LLAMA * 1024 / MEMORY.bandwidth))
    extra = LLAMA * 2 * 512 * 512 / MEMORY.bandwidth  # the newest pages, as if they were full
    assert with_pages.compute_seconds == pytest.approx(without.compute_seconds + 4 * extra, rel=1e-6)


def test_a_slow_drive_is_what_a_token_waits_for() -> None:
    slow = Drive(2e8)
    outcome = run(llama(8192, 64 * MiB), drive=slow)
    assert outcome.limited_by == "flash"
    read = outcome.kv_bytes_read / outcome.tokens
    assert 1 / outcome.tokens_per_second == pytest.approx(read / slow.bandwidth, rel=0.1)
    assert outcome.stall_seconds > outcome.seconds / 2


def test_reads_go_on_while_cores_compute() -> None:
    """Reading ahead: a token takes less than both one after the other."""
    outcome = run(llama(8192, 64 * MiB), drive=Drive(3e9))
    alone = outcome.kv_bytes_read / 3e9 + outcome.compute_seconds
    assert outcome.seconds < 0.85 * alone


def test_equal_arguments_give_equal_runs() -> None:
    noise = Noise(jitter=0.2, slow=0.1)
    first, second = (run(llama(8192, 64 * MiB), noise=noise, seed=3) for _ in range(2))
    assert first == second
    assert first != run(llama(8192, 64 * MiB), noise=noise, seed=4)


def test_streams_share_the_memory() -> None:
    one, two = run(llama(4096, 64 * MiB)), run(llama(4096, 64 * MiB), streams=2)
    assert one.kv_bytes_read / one.tokens < 60e6
    assert two.kv_bytes_read / two.tokens > 70e6
    assert len(two.passes) == 8


def test_a_window_bounds_what_is_looked_at() -> None:
    wide, narrow = (KVLayer(64 * KiB, 64 * KiB, 128, window) for window in (None, 1024))
    setup = KVSetup(8 * MiB)
    outcome = run(Context([narrow] * 4, 100_000, setup))
    assert outcome.kv_bytes_read == 0, "nine pages of each fit"
    assert Context([narrow, wide], 100_000, setup).size_of(0) == 2 * 9 * 64 * KiB
    mixed = run(Context([narrow, wide], 8192, setup))
    assert 0 < mixed.kv_bytes_read / mixed.tokens < 64 * 2 * 64 * KiB


def test_tokens_that_fill_a_page_begin_a_new_one() -> None:
    layer = KVLayer(PAGE, PAGE, 4)
    context = Context([layer] * 2, 63, KVSetup(24 * PAGE))
    first, later = run(context, tokens=1), run(context, tokens=40)
    assert later.kv_bytes_read / later.tokens > first.kv_bytes_read / first.tokens, "ten pages more lie on flash"
    assert not any(each.failed for each in later.passes)


def test_a_read_that_fails_fails_its_token_and_no_other() -> None:
    outcome = run(llama(4096, 32 * MiB), tokens=30, noise=Noise(failing=0.01), seed=1)
    failed = [each.failed for each in outcome.passes]
    assert 0 < sum(failed) < len(failed)
    assert len(failed) == 30


def test_too_little_memory_for_the_newest_pages_is_an_error() -> None:
    with pytest.raises(BudgetTooSmall, match="newest tokens"):
        run(Context([KVLayer(PAGE, PAGE, 4)] * 20, 63, KVSetup(24 * PAGE)))


def test_of_a_very_long_context_pages_are_simulated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    context = llama(16384, 64 * MiB, layers=44)
    few = run(context)
    monkeypatch.setattr(kv, "MOST_PAGES", 10**9)
    every = run(context)
    assert few.kv_bytes_read == pytest.approx(every.kv_bytes_read, rel=0.03)
    assert few.seconds == pytest.approx(every.seconds, rel=0.06)
