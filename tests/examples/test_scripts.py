"""Every script of examples/ runs as it is written there, and what it prints is true."""

import re
import signal
import subprocess
from pathlib import Path

from penstock.routing import Routes

from .conftest import EXAMPLES, SECONDS, Run, Start

MIB = r"([\d.]+) MiB"
READING_ALWAYS = Path(__file__).parents[1] / "support" / "reading_always.py"
PROMPT = "It was a dark evening in November, and the old man"


def numbers(pattern: str, text: str) -> list[float]:
    """The numbers in the one place where ``pattern`` matches."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern!r} is {len(found)} times in:\n{text}"
    return [float(number) for number in (found[0] if isinstance(found[0], tuple) else found)]


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_demo_says_the_same_in_less_memory(run: Run) -> None:
    out = succeeded(run("demo.py"))
    assert re.findall(r"│ +(yes|NO|reference) │", out) == ["yes"] * 4 + ["reference"]
    assert PROMPT in out


def test_a_model_larger_than_its_memory(run: Run) -> None:
    out = succeeded(run("larger_than_memory.py", "--tokens", 32))
    assert out.startswith(PROMPT)
    experts, cached, hits = numbers(rf"experts: +{MIB}, a cache for {MIB} of them, hit ratio (\d+)%", out)
    (stays,), (now,) = numbers(rf"stays in memory: +{MIB}", out), numbers(rf"in memory now: +{MIB}", out)
    (read,) = numbers(rf"read for each token: +{MIB}", out)
    assert stays + experts > 14, "the model is larger than its budget"
    assert stays + cached <= 6
    assert 0 < now <= 6
    assert 0 < hits < 100
    assert read > 0


def test_answers_come_side_by_side(run: Run) -> None:
    lines = succeeded(run("stream_in_asyncio.py", "--tokens", 24)).splitlines()
    ends = [number for number, line in enumerate(lines) if "] finished after 24 tokens" in line]
    begins = [next(n for n, line in enumerate(lines) if line.startswith(f"[{answer}]")) for answer in (1, 2, 3)]
    assert len(ends) == 3
    assert max(begins) < min(ends)


def test_answers_that_take_too_long_are_stopped(run: Run) -> None:
    out = succeeded(run("stream_in_asyncio.py", "--tokens", 900, "--timeout", 0.5))
    stopped = {answer: int(tokens) for answer, tokens in re.findall(r"\[(\d)\] timed out after (\d+) tokens", out)}
    assert stopped.keys() == {"1", "2", "3"}
    assert all(tokens < 900 for tokens in stopped.values())


def test_ctrl_c_stops_all_answers(start: Start) -> None:
    with start("stream_in_asyncio.py", "--tokens", 900) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("[")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert err.endswith("stopped\n")
    assert "Traceback" not in err
    assert "finished" not in out


def test_a_long_context_lies_on_flash(run: Run) -> None:
    out = succeeded(run("long_context.py", "--tokens", 6))
    assert numbers(r"context: +(\d+) tokens", out) == [965]
    held, most = numbers(rf"KV in memory: +{MIB}, of {MIB}", out)
    (on_flash,) = numbers(rf"KV on flash: +{MIB}", out)
    read, pages = numbers(rf"KV read back: +{MIB} in (\d+) pages", out)
    assert 0 < held <= most < 965 * 6 * 2 * 128 / 2**20, "it has more bytes than room in memory"
    assert on_flash > 0
    assert read > 0
    assert pages > 0


def test_a_stored_prompt_is_restored_after_a_restart_too(run: Run) -> None:
    through = READING_ALWAYS, EXAMPLES / "stored_prompts.py"  # which is quicker depends on what else the machine does
    runs = [succeeded(run(*through, "--tokens", 6)) for _ in range(2)]
    restored = [list(map(int, re.findall(r"tokens, (\d+) restored", out))) for out in runs]
    assert restored == [[0, 0, 512, 512], [512, 512, 512, 512]]
    answers = [re.findall(r" s  (.+)", out) for out in runs]
    assert len(answers[0]) == 4
    assert answers[0] == answers[1]


def test_a_bundle_has_the_size_asked_for(run: Run) -> None:
    process = run("quantise_to_size.py", "--sizes", "6MiB", "4MiB", "1MiB", "--tokens", 256)
    rows = re.findall(rf"^(\S+) +{MIB} +([\d.]+)$", process.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["as-is", "fit:6MiB", "fit:4MiB"]
    original, six, four = (float(size) for _, size, _ in rows)
    assert 5.9 < six <= 6 < original
    assert 3.9 < four <= 4
    perplexities = [float(perplexity) for _, _, perplexity in rows]
    assert perplexities[0] * 0.98 < perplexities[1] < perplexities[2] < perplexities[0] * 1.3
    assert process.returncode == 1
    assert re.search(r"write fit:\d+ or more", process.stderr.splitlines()[-1])


def test_three_tiers_with_an_emulated_device(run: Run) -> None:
    out = succeeded(run("emulated_device.py", "--tokens", 12))
    assert out.startswith(PROMPT)
    device, device_budget = numbers(rf"device memory: +{MIB}, of {MIB}", out)
    host, host_budget = numbers(rf"host memory: +{MIB}, of {MIB}", out)
    copied, seconds = numbers(rf"copied up: +{MIB} in ([\d.]+) s", out)
    (read, _) = numbers(rf"read from flash: +{MIB} in ([\d.]+) s", out)
    assert 0 < device <= device_budget == 5
    assert 0 < host <= host_budget == 6
    assert copied > device, "some blocks were copied again"
    assert copied * 2**20 / 2e9 < seconds + 0.01, "no faster than the bus"
    assert read > 14 - 5 - 6


def test_the_routing_of_a_run_is_recorded(run: Run, tmp_path: Path) -> None:
    out = succeeded(run("profile_a_moe.py", "--tokens", 40, "--out", tmp_path / "routes"))
    routes = Routes.load(tmp_path / "routes")
    assert numbers(r"(\d+) tokens, (\d+) of (\d+) experts for each", out) == [routes.tokens, 24, 96]
    cached = [int(hits) for hits in re.findall(r"^ +\d+ \(\d+%\) +(\d+)%$", out, re.MULTILINE)]
    assert len(cached) == 3
    assert cached == sorted(cached)
    layers = re.findall(r"^model\.layers\.\d\.mlp\.experts +([\d.]+) +(\d+)%$", out, re.MULTILINE)
    assert len(layers) == 6
    assert all(0 < float(evenness) <= 1 and 100 / 16 <= int(largest) <= 25 for evenness, largest in layers)


def test_a_wrapped_model_gives_the_same_bits(run: Run) -> None:
    out = succeeded(run("wrap_a_model.py"))
    assert "the same object:  yes" in out
    assert "the same logits:  yes, every bit" in out
    now, budget = numbers(rf"weights now: +{MIB} in memory, of {MIB}", out)
    assert 0 < now <= budget == 6
