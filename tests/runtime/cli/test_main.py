"""The command line without a model: help, configuration, errors and exit codes, what loads when."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

from penstock.kernels import native
from penstock.runtime.cli import doctor, options
from penstock.runtime.cli.bench import summarise
from penstock.runtime.cli.generate import ANSWER_TOKENS, TOKENS, room_for
from penstock.runtime.cli.main import main, make_app
from penstock.runtime.cli.measure import peak_resident_bytes
from penstock.runtime.cli.writing import tokens_per_second
from penstock.runtime.config.config import Config
from penstock.runtime.config.settings import OVERRIDES
from penstock.runtime.machine import timings
from penstock.runtime.machine.timings import Timings
from penstock.tiering.errors import PromptTooLong
from penstock.tiering.units import GiB
from tests.support.timings import KEPT, TIMINGS

COMMANDS = (
    "generate",
    "chat",
    "serve",
    "batch",
    "pack",
    "verify",
    "inspect",
    "plan",
    "profile",
    "eval",
    "doctor",
    "config",
    "bench",
    "ls",
    "rm",
    "du",
    "prune",
)
GROUPS = {"cache": ("ls", "save", "verify", "prune")}
SUBCOMMANDS = tuple(f"{group} {name}" for group, names in GROUPS.items() for name in names)
PENSTOCK = (sys.executable, "-c", "from penstock.runtime.cli.main import run; run()")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No configuration of the developer's own gets in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run in this process; exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


# --- surface ---


def test_help_names_every_command(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for name in (*COMMANDS, *GROUPS):
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS + SUBCOMMANDS)
def test_every_command_takes_the_shared_options(name, run):
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    for override in OVERRIDES:
        assert f"--{override.replace('_', '-')} " in out
    assert "--json " in out
    assert "--config " in out
    assert (
        ("--revision" in out)
        == ("--trust-remote-code" in out)
        == (name not in ("doctor", "config", "ls", "rm", "du", "prune", "cache ls", "cache verify", "cache prune"))
    )


def test_options_are_the_overrides_of_the_configuration():
    commands = typer.main.get_command(make_app()).commands
    assert {option.name for option in commands["config"].params} == {"json", "config_file", *OVERRIDES}
    assert set(commands) == {*COMMANDS, *GROUPS}
    assert {name: tuple(commands[name].commands) for name in GROUPS} == GROUPS


def test_version(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("penstock 0.")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["cache", "save", "--help"], ["config"], ["--version"]]
)
def test_quick_answers_load_no_torch(arguments):
    code = (
        "import sys; from penstock.runtime.cli.main import main; main(sys.argv[1:]);"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


# --- configuration ---


def test_config_prints_a_file_that_reads_back(run, tmp_path):
    code, out, err = run("config", "--host-memory", "3GiB", "--io-depth", "4", "--threads", "auto", "--store", "s")
    assert (code, err) == (0, "")
    (tmp_path / "saved.toml").write_text(out)
    config = Config.load(tmp_path / "saved.toml")
    assert (config.memory.host, config.io.depth, config.store.path) == (3 * GiB, 4, tmp_path / "s")
    assert run("config", "--config", "saved.toml") == (0, out, "")
    (tmp_path / "saved.toml").write_text(run("config", "--store-stripes", "a,/b", "--store-stripes", "c")[1])
    assert Config.load(tmp_path / "saved.toml").store.stripes == (tmp_path / "a", Path("/b"), tmp_path / "c")


def test_config_as_json_has_the_file_s_sections(run):
    code, out, _ = run("config", "--json", "--host-memory", "1GiB")
    assert code == 0
    document = json.loads(out)
    assert document["memory"]["host"] == GiB
    assert document.keys() == tomllib.loads(Config().to_toml()).keys()


def test_file_in_the_folder_is_used(run):
    Path("penstock.toml").write_text('[experts]\neviction = "lru"\n')
    assert 'eviction = "lru"' in run("config")[1]
    assert 'eviction = "lfu"' in run("config", "--experts-eviction", "lfu")[1]
    assert "epsilon = 0.25" in run("config", "--kv-epsilon", "0.25")[1]


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["config", "--host-memory", "2XB"], ["host_memory", "2XB"]),
        (["config", "--kv-epsilon", "few"], ["kv_epsilon", "few", "between 0 and 1"]),
        (["config", "--io-depth", "x"], ["io_depth", "number"]),
        (["config", "--weights-quality", "best"], ["weights_quality", "adaptive"]),
        (["config", "--weights-format", "int3"], ["as-is"]),
        (["config", "--config", "absent.toml"], ["absent.toml", "No such file"]),
        (["plan", "m", "--device", "gpu"], ["device", "cuda:0"]),
        (["inspect", "./absent"], ["absent"]),
        (["verify", "./absent"], ["absent"]),
        (["pack", "./absent"], ["absent"]),
        (["plan", "./absent"], ["absent"]),
        (["generate", "./absent", "-p", "x"], ["absent"]),
        (["bench", "./absent"], ["absent"]),
        (["cache", "save", "./absent", "-p", "x"], ["absent"]),
        (["cache", "prune", "--model", "absent"], ["absent", "ls"]),
        (["cache", "prune", "--to", "2XB"], ["2XB"]),
    ],
)
def test_errors_are_one_line_and_exit_code_1(run, arguments, parts):
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("penstock: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_mistyped_key_in_the_file(run):
    Path("penstock.toml").write_text("[memory]\nhots = 1\n")
    code, _, err = run("pack", "m")
    assert code == 1
    assert "penstock.toml" in err
    assert 'did you mean "host"' in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["config", "--frobnicate"],
        ["pack"],
        ["generate", "m"],
        ["generate", "m", "-p", "x", "-n", "0"],
        ["generate", "m", "-p", "x", "--prompt-file", "y"],
        ["generate", "m", "-p", "x", "--raw", "--system", "y"],
        ["generate", "m", "-p", "x", "--beams", "2", "--stop", "y"],
        ["generate", "m", "-p", "x", "--stop", ""],
        ["generate", "m", "-p", "x", "--temperature", "0", "--top-p", "0.5"],
        ["generate", "m", "-p", "x", "--temperature", "0", "--seed", "1"],
        ["generate", "m", "-p", "x", "--temperature", "-1"],
        ["generate", "m", "-p", "x", "--min-p", "1.5"],
        ["generate", "m", "-p", "x", "--repetition-penalty", "0"],
        ["generate", "m", "-p", "x", "--presence-penalty", "inf"],
        ["generate", "m", "-p", "x", "--temperature", "nan"],
        ["generate", "m", "-p", "x", "--top-p", "1.5"],
        ["generate", "m", "-p", "x", "--top-k", "0"],
        ["generate", "m", "-p", "x", "--seed", "1"],
        ["generate", "m", "-p", "x", "--beams", "0"],
    ],
)
def test_bad_usage_is_exit_code_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


def test_ctrl_c_is_one_line_and_exit_code_130(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(options.Settings, "load", interrupt)
    assert run("config") == (130, "", "penstock: interrupted\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_quiet(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    environment = dict(os.environ, PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run([*PENSTOCK, "config"], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# --- arithmetic of the reports ---


def test_room_for_tokens():
    assert room_for(10, None, None) == TOKENS
    assert room_for(10, 500, None) == 500
    assert room_for(10, None, 20) == 11
    assert room_for(10, None, 1000) == TOKENS
    assert room_for(10, None, None, ANSWER_TOKENS) == ANSWER_TOKENS
    assert room_for(20, 1, 20) == 1
    with pytest.raises(PromptTooLong, match=r"21 tokens.*20 positions"):
        room_for(21, None, 20)
    with pytest.raises(PromptTooLong, match=r"at most -n 11"):
        room_for(10, 12, 20)


def test_speed_of_decoding_leaves_the_prompt_out():
    assert tokens_per_second([10.0, 10.5, 11.0]) == 2.0
    assert tokens_per_second([4.0]) is None


def test_bench_counts_only_the_steps():
    names = ("flash_bytes_read", "expert_hits", "expert_misses", "dense_hits", "dense_misses", "stall_s")
    before = dict(zip(names, (1000, 5, 5, 0, 0, 1.0), strict=True))
    after = dict(zip(names, (5000, 8, 6, 0, 0, 2.0), strict=True))
    got = summarise(before, after, [1.0, 1.0, 1.0, 5.0], 1000.0)
    assert got["tokens_per_second"] == 1.0
    assert got["tokens_per_second_mean"] == 0.5
    assert got["flash_bytes_per_token"] == 1000
    assert got["hit_ratio"] == 0.75
    assert got["stall_share"] == 0.125
    assert got["drive_fraction"] == 0.5


def test_peak_memory_is_what_the_kernel_says(tmp_path):
    (tmp_path / "status").write_text("VmPeak:\t 99 kB\nVmHWM:\t  7 kB\n")
    assert peak_resident_bytes(tmp_path / "status") == 7 * 1024
    assert peak_resident_bytes() > 1 << 20


# --- doctor ---


def test_doctor_measures_and_leaves_nothing(run, monkeypatch, tmp_path):
    from penstock.kernels.machine import machine

    real = machine.measure_drive
    monkeypatch.setattr(
        machine, "measure_drive", lambda folder: real(folder, sizes=(4096, 8192), depths=(1, 2), seconds_each=0.01)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "measure_memory", lambda: [1e10])
    monkeypatch.setattr("penstock.runtime.planning.reference.measure", lambda *_: KEPT)
    code, out, _ = run("doctor", "--json", "--store", "new/store")
    assert code == 0
    report = json.loads(out)
    own = [rate for rate in report["drive"]["rates"] if rate["backend"] == "threads"]
    assert [rate["size"] for rate in own] == [4096, 4096, 8192, 8192]
    assert report["reading"]["backend"] in ("threads", "io_uring", "buffered")
    assert report["kept_in"] == str(tmp_path / "cache" / "penstock" / "drives.json")
    assert report["memory_bytes_per_second"] == 1e10
    assert report["machine"]["cores"] >= 1
    assert report["kernels"] == json.loads(json.dumps(asdict(native.describe())))
    assert Timings(**report["computing"]) == TIMINGS
    assert timings.load("auto") == KEPT
    assert set(report["measured"]) == {"drive", "computing", "memory"}
    assert report["measured"]["computing"]["spread"] == 0.1
    speeds = {speed["kind"]: speed for speed in report["kernel_speeds"]}
    assert {"bfloat16", "int8", "nesting", "attention, pages as-is"} <= speeds.keys()
    assert speeds["nesting"]["level"] == (report["kernels"]["level"] if native.KERNELS else "torch")
    kept = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert Path(report["kept_in"]) in kept
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept
    code, out, _ = run("doctor")
    assert code == 0
    assert "8.00 KiB" in out
    assert report["kept_in"] in out
    assert "2 in flight" in out
    assert re.search(rf"^ *nesting +{speeds['nesting']['level']} +\d+\.\d\d$", out, re.MULTILINE)
    assert f"kernels: {doctor.kernels_in_use(native.describe())}" in out


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "avx512, on all threads, compiled by gcc 12.2.0"),
        (
            {"level": "plain", "openmp": False, "compiler": "clang 17.0.0"},
            "plain, on one thread, compiled by clang 17.0.0",
        ),
        ({"compiler": "", "level": "none"}, "none, torch computes everything"),
    ],
)
def test_doctor_says_which_kernels_are_in_use(change, text):
    whole = native.Kernels("gcc 12.2.0", level="avx512", openmp=True, features=(), missing=())
    assert doctor.kernels_in_use(replace(whole, **change)) == text


def test_doctor_warns():
    good = {
        "swap_used": 0,
        "available": 8 * GiB,
        "file_system": "ext4",
        "direct": True,
        "free": 100 * GiB,
        "kept": True,
        "kernels": (),
    }
    assert doctor.warnings_for(**good) == []
    for change, word in (
        ({"swap_used": GiB}, "swap"),
        ({"available": GiB}, "memory"),
        ({"file_system": "tmpfs"}, "is memory"),
        ({"file_system": "nfs4"}, "network"),
        ({"direct": False}, "page cache"),
        ({"free": GiB}, "free"),
        ({"kept": False}, "kept"),
        ({"kernels": ("the kernels run on one thread",)}, "one thread"),
        ({"doubtful": True}, "when they have ended"),
        ({"doubtful": True, "doubted": ("computing",)}, "the earlier rates of computing stay"),
    ):
        (note,) = doctor.warnings_for(**good | change)
        assert word in note


def test_file_system_is_that_of_the_nearest_mount(tmp_path):
    table = tmp_path / "mounts"
    points = (("/", "ext4"), (tmp_path, "xfs"), (f"{tmp_path}/a\\040b", "tmpfs"), (f"{tmp_path}/a\\040b", "nfs"))
    table.write_text("".join(f"device {point} {kind} rw 0 0\n" for point, kind in points))
    assert doctor.file_system_of(Path("/nowhere"), table) == "ext4"
    assert doctor.file_system_of(tmp_path / "c", table) == "xfs"
    assert doctor.file_system_of(tmp_path / "a b" / "c", table) == "nfs"
    assert doctor.file_system_of(tmp_path, tmp_path / "absent") == "unknown"
