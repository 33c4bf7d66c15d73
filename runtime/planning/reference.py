"""Times of small reference models: the cost of a layer and of a token on this machine, besides their weights.

They run as every model does. There are two sizes of each kind: one whose weights stay in the processor's caches, and
one whose weights push everything else out of them, after which the interpreter and small operations take longer too.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as hf_initialization

from ...kernels.machine.machine import measure_drive
from ...kernels.machine.power import is_on_battery
from ...kernels.memory.heap import bound_kernel_caches
from ...tiering.driving.small_files import in_words
from ...tiering.errors import ConfigError
from ...tiering.events import Read
from ...tiering.policy.drive_reading import LARGEST_READ
from ...tiering.policy.measured import Measured
from ...tiering.policy.trust import spread_of
from ...tiering.progress import Quiet
from ...tiering.sim.calibration import (
    bytes_used,
    delivered,
    dense_seconds,
    expert_seconds,
    guess_seconds,
    layer_seconds,
    lost_share,
    memory_of,
    typical,
)
from ...tiering.sim.devices import line
from ...tiering.sim.recording import Recording
from ...tiering.units import PAGE, MiB
from ..config.config import Config
from ..loading.install import set_threads
from ..loading.load import wrap
from ..machine import timings
from ..machine.timings import Delivery, KeptTimings, ProductSpeeds, Pulse, Timings
from ..machine.watch import Watch
from ..modules.few_rows import few_rows
from ..tracing.run_recording import recorded

_DENSE = ((256, 1), (256, 4), (2048, 1))
"""Widths and layers: of the first two the difference is layers, the third has large ones."""
_EXPERTS = ((256, 4, 4), (1024, 2, 8))
"""Widths, layers, and experts that a token uses, of 16."""
_PROMPT, _TOKENS, _UNTIMED = 8, 40, 8
_TIGHT, _DENSE_TIGHT = 0.6, 0.9
"""Share of a model's weights that its memory holds, so that it computes while others are read. A dense block that is
waited for costs the cores more than one in memory: with this share, a third of the blocks are waited for."""
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDTH, _MATRICES, _MANY = 2048, 12, 256
"""Matrices that are multiplied: their width, their number, and the larger of the two numbers of tokens."""
_REPEATS = 5
_ALONE = 0.5
"""Seconds of reading a drive alone."""
_STEPS, _STEP_WIDTH = 500, 1024
"""Rounds of small operations of a brief look, and their width."""
_LEAST_LEFT = 0.05
"""The least share of the machine's speed that other programs leave, whatever the clock says."""
_LEAST = 1e-9
"""The least seconds of a layer, whatever the clock says."""


class _TimedRun(NamedTuple):
    """The median ``seconds`` of a token, how far they lie apart, and the recording."""

    seconds: float
    spread: float
    recording: Recording


class TimingsNow(NamedTuple):
    """The timings of this machine, and what a brief look has found of it just ``now``, with the share of its speed that
    was ``left`` by other programs."""

    kept: KeptTimings
    now: Measured
    left: float = 1.0


def timings_here(folder: Path, threads: int | str, *, refuted: bool = False) -> TimingsNow:
    """The timings of this machine: those that are kept, after a brief look at the machine, else measured by
    ``measure``, and kept. Doubtful ones, once stale, are measured anew, as are those that a run has ``refuted``."""
    kept = timings.load(threads)
    battery = is_on_battery()
    if kept is None or refuted or (kept.measured.doubtful and kept.measured.stale(time.time(), battery=battery)):
        found = measure(folder, threads)
        timings.keep(found, threads, anyway=refuted)
        return TimingsNow(found, found.measured)
    watch = Watch(None)
    look = take_pulse(threads)
    now = watch.done()
    if now.doubtful:
        left = min(1.0, look.products / kept.pulse.products, kept.pulse.steps / look.steps)
        return TimingsNow(kept, now, max(_LEAST_LEFT, left))
    changed = kept.after(look, now)
    if changed != kept:
        timings.keep(changed, threads)
    return TimingsNow(changed, now)


def measure(folder: Path, threads: int | str) -> KeptTimings:
    """Measure this machine with the reference models, with ``threads`` as in the configuration. The models lie below
    ``folder`` meanwhile. Takes some seconds, 300 MiB there, and 300 MiB of memory.

    Raises ConfigError when ``folder`` cannot be written to, FlashFull when it has no room.
    """
    try:
        watch = Watch(folder)
        found, spread = _measure(folder, threads)
        return KeptTimings(timings=found, measured=watch.done(spread), pulse=take_pulse(threads))
    except OSError as error:
        raise ConfigError(
            f"cannot measure computing with {folder}: {in_words(error)}; or choose another with --store"
        ) from error


def take_pulse(threads: int | str) -> Pulse:
    """A brief look, of a few tenths of a second: the best of several turns of products and of small operations."""
    set_threads(threads)
    bound_kernel_caches()
    step = torch.zeros(1, _STEP_WIDTH, dtype=torch.bfloat16)

    def steps() -> None:
        out = step
        for _ in range(_STEPS):
            out = torch.rsqrt(out * out + 1).view(1, -1)

    with torch.inference_mode():
        speed, _ = _one_token(torch.bfloat16)
        return Pulse(products=speed, steps=_quickest(steps))


def _measure(folder: Path, threads: int | str) -> tuple[Timings, float]:
    """The times, and how far repeats of them lie apart."""
    with tempfile.TemporaryDirectory(prefix=".penstock-trial-", dir=folder) as place:
        settings = Config().override(store=place, threads=threads)
        one, four, wide = (_run(_dense(*shape), settings) for shape in _DENSE)
        warm, cold = (_run(_experts(*shape), settings) for shape in _EXPERTS)
        tight = _run(_experts(*_EXPERTS[-1]), settings, share=_TIGHT)
        dense_tight = _run(_dense(*_DENSE[-1]), settings, share=_DENSE_TIGHT)
    (_, few), (_, more), _ = _DENSE
    per_layer = max(_LEAST, (four.seconds - one.seconds) / (more - few))
    token = max(0.0, one.seconds - few * per_layer)
    large_layer = max(_LEAST, wide.seconds - token)
    dense_layer, dense_pace = line(
        [(bytes_used(four.recording) / more, per_layer), (bytes_used(wide.recording), large_layer)]
    )
    alone = [taken for run in (warm, cold) for taken in typical(expert_seconds(run.recording))]
    memory = memory_of(alone, typical(expert_seconds(tight.recording)))
    layer_warm, layer_cold = (layer_seconds(run.recording, memory, run.seconds - token) for run in (warm, cold))
    spread = statistics.median(run.spread for run in (one, four, wide, warm, cold))
    found = Timings(
        memory=memory.bandwidth,
        overhead=memory.overhead,
        contention=memory.contention,
        guess=guess_seconds(tight.recording),
        layer_warm=layer_warm,
        layer_cold=max(layer_warm, layer_cold),
        cold=bytes_used(cold.recording) // _EXPERTS[-1][1],
        dense_memory=1 / dense_pace,
        dense_layer=dense_layer,
        dense_contention=lost_share(*(_computed(run) for run in (wide, dense_tight))),
        token=token,
        delivery=_delivery(folder, tight.recording),
        dense_delivery=_delivery(folder, dense_tight.recording),
        products={str(dtype).removeprefix("torch."): _products(dtype) for dtype in _DTYPES},
    )
    return found, spread


# --- models ---------------------------------------------------------------------------------------------------------


def _dense(width: int, layers: int) -> PreTrainedModel:
    return _model("llama", width, layers, intermediate_size=width * 11 // 4)


def _experts(width: int, layers: int, top_k: int) -> PreTrainedModel:
    experts = {"num_experts": 16, "num_experts_per_tok": top_k, "moe_intermediate_size": width // 2}
    return _model("qwen3_moe", width, layers, **experts, head_dim=64, decoder_sparse_step=1, mlp_only_layers=[])


def _model(kind: str, width: int, layers: int, **more: Any) -> PreTrainedModel:
    """A random model in bfloat16 whose embedding is its output layer, and next to nothing of the rest."""
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(4, width // 64)}
    positions = _PROMPT + _TOKENS
    config = AutoConfig.for_model(
        kind,
        vocab_size=256,
        max_position_embeddings=positions,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        **sizes,
        **more,
    )
    with hf_initialization.no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16) / width**0.5
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                flat = weight.view(-1)
                flat.copy_(values.repeat(-(-flat.numel() // values.numel()))[: flat.numel()])
    return model


def _run(model: PreTrainedModel, settings: Config, share: float | None = None) -> _TimedRun:
    """Decode with all of ``model`` in memory, or with a ``share`` of its bytes."""
    whole = sum(weight.nbytes for weight in model.parameters())
    budget = 2 * whole + MiB if share is None else int(whole * share)
    record = Path(settings.store.path) / "run.penrec"
    seconds = []
    settings = settings.override(host_memory=budget)
    with wrap(model, settings, record=record, progress=Quiet()) as streamed, torch.inference_mode():
        out = streamed(torch.arange(_PROMPT)[None], use_cache=True)
        for token in range(_TOKENS):
            start = time.perf_counter()
            out = streamed(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - start)
    timed = seconds[_UNTIMED:]
    return _TimedRun(statistics.median(timed), spread_of(timed), recorded(record))


def _delivery(folder: Path, recording: Recording) -> Delivery:
    """The speed of the drive below ``folder`` in a recorded run, compared with reads of the same size alone."""
    sizes = [action.size for _, _, actions in recording.steps for action in actions if isinstance(action, Read)]
    size = min(LARGEST_READ, max(PAGE, round(statistics.mean(sizes)) // PAGE * PAGE)) if sizes else PAGE
    alone = measure_drive(
        folder, sizes=(size,), depths=(recording.setup.depth,), backends=("threads",), seconds_each=_ALONE
    )
    found = delivered(recording)
    return Delivery(share=found.waiting / alone.best.bytes_per_second, contention=found.lost)


def _computed(run: _TimedRun) -> float:
    """The median seconds of computing a token."""
    return statistics.median(dense_seconds(run.recording)[1 + _UNTIMED :])


def _products(dtype: torch.dtype) -> ProductSpeeds:
    """Products of one and of many tokens with more weights than the processor's caches hold."""
    with torch.inference_mode():
        one, layer = _one_token(dtype)
        many = torch.ones(_MANY, _WIDTH, dtype=dtype)
        return ProductSpeeds(one=one, many=layer.weight.nbytes * _MANY / _quickest(lambda: layer(many)))


def _one_token(dtype: torch.dtype) -> tuple[float, nn.Linear]:
    """Bytes of weights per second of products of one token; and one of the layers."""
    with torch.device("meta"):
        layers = [nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=dtype).requires_grad_(False) for _ in range(_MATRICES)]
    for layer in layers:
        layer.weight = nn.Parameter(torch.full((_WIDTH, _WIDTH), 0.5, dtype=dtype), requires_grad=False)
    forwards = [few_rows(layer, layer.forward) or layer.forward for layer in layers]
    one = torch.ones(1, _WIDTH, dtype=dtype)
    best = _quickest(lambda: [forward(one) for forward in forwards])
    return layers[0].weight.nbytes * _MATRICES / best, layers[0]


def _quickest(work: Callable[[], object]) -> float:
    """Seconds of the quickest of several turns."""
    best = math.inf
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
