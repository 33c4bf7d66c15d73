"""The setting that limits the instructions, of our kernels and of torch's."""

import os
import platform
import subprocess
import sys

import pytest

from penstock.kernels import isa, native

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def run(*lines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, isa.SETTING)}
    command = [sys.executable, "-W", "ignore", "-c", "; ".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=kept | environment)


def printed(*lines: str, **environment: str) -> str:
    done = run(*lines, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("value", "machine", "levels"),
    [
        (None, "x86_64", ("plain", "avx2", "avx512")),
        ("", "arm64", ("plain", "neon")),
        ("none", "x86_64", ()),
        ("plain", "x86_64", ("plain",)),
        ("avx2", "AMD64", ("plain", "avx2")),
        ("avx512", "x86_64", ("plain", "avx2", "avx512")),
        ("neon", "aarch64", ("plain", "neon")),
        (None, "riscv64", ("plain",)),
    ],
)
def test_a_value_allows_its_level_and_those_below(value: str | None, machine: str, levels: tuple[str, ...]) -> None:
    assert isa.allowed(value, machine) == levels


@pytest.mark.parametrize(
    ("value", "machine"), [("AVX2", "x86_64"), ("all", "x86_64"), ("neon", "x86_64"), ("avx2", "arm64")]
)
def test_a_value_that_names_no_level_of_the_machine_is_refused(value: str, machine: str) -> None:
    with pytest.raises(ValueError, match=f"PENSTOCK_ISA is '{value}': on {machine} it can be none, plain, .*unset it"):
        isa.allowed(value, machine)


def test_every_level_but_none_holds_torch_too() -> None:
    for machine in ("x86_64", "aarch64"):
        for level in isa.levels_of(machine):
            assert set(isa.torch_variables(level, machine)) == set(VARIABLES)
        assert isa.torch_variables("none", machine) == isa.torch_variables(None, machine) == {}
    assert isa.torch_variables("plain", "riscv64") == {}


@X86
@pytest.mark.parametrize(("level", "name"), [("plain", "DEFAULT"), ("avx2", "AVX2")])
def test_torch_has_the_level_if_penstock_comes_first(level: str, name: str) -> None:
    capability = "print(torch.backends.cpu.get_cpu_capability())"
    found = printed("import penstock", "import torch", capability, PENSTOCK_ISA=level)
    if native.find_level(level) is not None:
        assert found == name
    both = "from penstock.kernels import native", "print(native.describe().missing)"
    assert "does not hold it" not in printed(*both, PENSTOCK_ISA=level)


@X86
def test_a_torch_that_came_first_is_told_with_what_to_do() -> None:
    lines = "import torch", "from penstock.kernels import native", "print(*native.describe().missing)"
    assert (
        "torch was imported before Penstock, so PENSTOCK_ISA=avx2 does not hold it: import penstock first, or set "
        "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
    ) in printed(*lines, PENSTOCK_ISA="avx2")


@X86
def test_what_is_set_for_torch_stays() -> None:
    shown = "print(os.environ['ATEN_CPU_CAPABILITY'], os.environ['ONEDNN_MAX_CPU_ISA'])"
    assert printed("import os, penstock", shown, PENSTOCK_ISA="avx2", ATEN_CPU_CAPABILITY="default") == "default AVX2"


def test_what_uses_models_and_the_command_refuse_an_unknown_value() -> None:
    done = run("import penstock", "print('imported')", "penstock.load", PENSTOCK_ISA="avx3")
    assert done.stdout == "imported\n"
    assert done.stderr.splitlines()[-1].startswith("penstock.tiering.errors.ConfigError: PENSTOCK_ISA is 'avx3'")
    code = "from penstock.runtime.cli.main import main; raise SystemExit(main(['config']))"
    done = run(code, PENSTOCK_ISA="avx3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("penstock: error: PENSTOCK_ISA is 'avx3': on ")


@pytest.mark.skipif(native.KERNELS is None, reason="nothing was compiled")
def test_the_highest_level_that_runs_is_used() -> None:
    assert native.RUNS[0] == "plain"
    assert native.KERNELS is native.find_level(native.RUNS[-1])
    for level in native.RUNS:
        held = printed("from penstock.kernels import native", "print(*native.RUNS)", PENSTOCK_ISA=level)
        assert held.split() == [*native.RUNS[: native.RUNS.index(level) + 1]]
    assert printed("from penstock.kernels import native", "print(native.KERNELS)", PENSTOCK_ISA="none") == "None"


def test_a_level_that_does_not_run_here_is_none() -> None:
    assert native.find_level("neon" if platform.machine() == "x86_64" else "avx2") is None
