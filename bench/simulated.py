"""How near simulated runs come to real ones: the same planner, routing and budgets, devices measured here.

    python bench/simulated.py MODEL --host-memory 5MiB 7MiB 10MiB --calibrate 4MiB [--text FILE] [--tokens 64]
        [--rounds 5] [--set NAME=VALUE ...]

In every round devices are measured in runs of their own: with everything in memory what computing takes, and with
--calibrate what it takes beside a drive, and what the drive delivers. Then every budget is run for real, and recorded.
Simulated are the devices that were typical of all rounds, with what each run's streams chose and guessed. A simulation
knows the routing of its run, and none of its times. What is timed are tokens one by one, after a prompt. Each recording
is also replayed. The packed model lies below the present folder meanwhile.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from figures import difference, traffic
from report import Table, publish
from tokens import fixed_tokens

import penstock
from penstock.kernels.machine.machine import measure_memory
from penstock.runtime.tracing.run_recording import recorded
from penstock.tiering.sim.calibration import (
    delivered,
    dense_seconds,
    expert_seconds,
    guess_seconds,
    layer_seconds,
    lost_share,
    memory_of,
    timed,
    typical,
)
from penstock.tiering.sim.devices import Drive, Memory
from penstock.tiering.sim.outcome import Outcome
from penstock.tiering.sim.recorded_workload import passes_of
from penstock.tiering.sim.recording import Recording, first_difference
from penstock.tiering.sim.simulator import simulate
from penstock.tiering.sim.workload import Workload, layers_of
from penstock.tiering.units import format_size, parse_size

PROMPT = 32


def run(options: argparse.Namespace, store: str, host_memory: str | int) -> tuple[dict[str, Any], Recording]:
    """Run once for real: the figures of decoding, and the recording."""
    path = Path(store) / "run.penrec"
    settings: dict[str, Any] = dict(setting.split("=", 1) for setting in options.set)
    with penstock.load(options.model, store=store, host_memory=host_memory, record=path, **settings) as model:
        ids, seconds, cache = tokens(options, model), [], None
        out = model(torch.tensor([ids[:PROMPT]]), use_cache=True, logits_to_keep=1)
        before = model.penstock.stats().report()
        for token in ids[PROMPT:]:
            cache, start = out.past_key_values, time.perf_counter()
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            seconds.append(time.perf_counter() - start)
        counted = difference(before, model.penstock.stats().report())
    figures = traffic(counted, sum(seconds), len(seconds)) | {"tokens_per_second": len(seconds) / sum(seconds)}
    return figures, recorded(path)


def tokens(options: argparse.Namespace, model: Any) -> list[int]:
    """The token ids that are fed."""
    count = PROMPT + options.tokens
    if options.text is None:
        return fixed_tokens(count, int(model.config.get_text_config().vocab_size))
    found = transformers.AutoTokenizer.from_pretrained(options.model)(options.text.read_text()).input_ids
    return list(found[:count])


class Computing(NamedTuple):
    """Times of computing: ``memory`` delivers the weights, ``besides`` are the seconds of a layer besides them,
    ``guess`` those of a guess."""

    memory: Memory
    besides: float
    guess: float


def measure_computing(token: float, whole: Recording, tight: Recording) -> Computing:
    """Derive times from two recordings: ``whole`` with everything in memory, where a token took ``token`` seconds and
    nothing was read meanwhile, and ``tight`` with little memory, where something was read nearly always."""
    if any(block.kind == "expert" for block in whole.setup.homes):
        memory = memory_of(*(typical(expert_seconds(recording)) for recording in (whole, tight)))
    else:
        lost = lost_share(*(statistics.median(dense_seconds(recording)[1:]) for recording in (whole, tight)))
        memory = Memory(max(measure_memory()), contention=lost)
    return Computing(memory, layer_seconds(whole, memory, token), guess_seconds(tight))


def median_of(measured: Sequence[Any]) -> Any:
    """Take the median of each number in them."""
    first = measured[0]
    if isinstance(first, float):
        return statistics.median(measured)
    if isinstance(first, Computing):
        return Computing(*map(median_of, zip(*measured, strict=True)))
    changes = {field.name: [getattr(each, field.name) for each in measured] for field in fields(first)}
    return replace(first, **{name: median_of(each) for name, each in changes.items() if isinstance(each[0], float)})


def simulate_run(recording: Recording, drive: Drive, computing: Computing) -> Outcome:
    """Simulate the run of ``recording`` on these devices."""
    setup, (memory, besides, guess) = recording.setup, computing
    by_row = {b for b, home in setup.homes.items() if home.region == "stream" and b not in setup.cycle}
    (prompt, *decoded), *_ = passes_of(recording).values()
    choices = PROMPT * max((len(chosen) for chosen in decoded[0].chosen), default=0)
    passes = [replace(prompt, tokens=PROMPT, choices=choices), *decoded]
    layers = timed(layers_of(block for block in setup.homes if block not in by_row), lambda _: besides)
    return simulate(
        Workload(layers, [passes], guess_seconds=guess),
        setup.planner(),
        drives=[drive] * setup.drives,
        memory=memory,
        untimed=1,
    )


def row(budget: str, rounds: list[dict[str, float]], prefix: str = "simulated") -> tuple[str, ...]:
    """Collect the medians of one budget: measured, predicted (figures whose names begin with ``prefix``), and the
    error."""
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    cells = [budget]
    for name, digits, unit in (("tokens_per_second", 1, 1.0), ("flash_bytes_per_token", 3, 1e6), ("hit_ratio", 3, 1.0)):
        real, sim = middle[name] / unit, middle[f"{prefix}_{name}"] / unit
        away = f"{sim / real - 1:+.1%}" if real else ""
        cells += [f"{real:.{digits}f}", f"{sim:.{digits}f}", away]
    return tuple(cells)


def main() -> None:
    """Measure devices and runs, simulate, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--host-memory", nargs="+", required=True, help="budgets")
    parser.add_argument("--text", type=Path, help="what is read, instead of fixed random tokens")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calibrate", required=True, help="another budget, in which reading takes most of the time")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of penstock")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found: dict[str, list[dict[str, float]]] = {budget: [] for budget in options.host_memory}
    recordings: dict[str, list[Recording]] = {budget: [] for budget in options.host_memory}
    drives, computing = [], []
    with tempfile.TemporaryDirectory(dir=".") as store:
        run(options, store, "8GiB")  # packs the model, and compiles what computing needs
        for _ in range(options.rounds):
            (figures, whole), (_, tight) = run(options, store, "8GiB"), run(options, store, options.calibrate)
            computing.append(measure_computing(1 / figures["tokens_per_second"], whole, tight))
            drives.append(delivered(tight).drive())
            for budget in options.host_memory:
                figures, recording = run(options, store, budget)
                assert first_difference(recording) is None, "replay acts in another way"
                found[budget].append(figures)
                recordings[budget].append(recording)
    for budget, rounds in found.items():
        for figures, recording in zip(rounds, recordings[budget], strict=True):
            outcome = simulate_run(recording, median_of(drives), median_of(computing))
            figures["simulated_tokens_per_second"] = outcome.tokens_per_second
            figures["simulated_flash_bytes_per_token"] = outcome.bytes_read / outcome.tokens
            figures["simulated_hit_ratio"] = outcome.hit_ratio
            figures["simulated_stall_share"] = outcome.stall_seconds / outcome.seconds
            figures["simulated_drive_busy_share"] = max(outcome.drive_busy_seconds) / outcome.seconds
    columns = ("budget", "tokens/s", "simulated", "", "MB/token", "simulated", "", "hit ratio", "simulated", "")
    rows = [row(format_size(parse_size(budget)), rounds) for budget, rounds in found.items()]
    publish(
        [Table(f"{Path(options.model).name}: real and simulated, medians", columns, rows)],
        {
            "rounds": found,
            "drives": [asdict(each) for each in drives],
            "computing": [each._asdict() | {"memory": asdict(each.memory)} for each in computing],
        },
        json_file=options.json,
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
