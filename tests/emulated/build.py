"""Compiles the kernels for other processors, and runs them there by QEMU."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from penstock.kernels import isa

SOURCES = Path(__file__).parents[2] / "kernels" / "csrc"
_RESULTS = Path(__file__).parent / "results.c"
_OPTIONS = ("-O2", "-Wno-psabi", "-Wno-unknown-pragmas", "-ffp-contract=off")


class NotHere(Exception):
    """A compiler or an emulator is missing. The message says what to install."""


@dataclass(frozen=True)
class Machine:
    """A kind of processor: what compiles for it, what emulates it, and the ``levels`` that it runs."""

    name: str
    compiler: str
    emulator: str
    levels: tuple[str, ...]
    package: str


MACHINES = (
    Machine("haswell", "gcc", "qemu-x86_64 -cpu Haswell", ("plain", "avx2"), "gcc"),
    Machine("aarch64", "aarch64-linux-gnu-gcc", "qemu-aarch64", ("plain", "neon"), "gcc-aarch64-linux-gnu"),
)
"""The first is also that of this machine, without the emulator."""


def build(machine: Machine, folder: Path) -> dict[str, Path]:
    """Compile the program with the results of each level. Raises NotHere."""
    for program, package in ((machine.compiler, machine.package), (machine.emulator.split()[0], "qemu-user")):
        if shutil.which(program) is None:
            raise NotHere(f"there is no {program}: install the package {package} (Debian, Ubuntu), then again")
    folder.mkdir(parents=True, exist_ok=True)
    others = [SOURCES / "levels" / f"{level}.c" for level in isa.LEVELS if level not in machine.levels]
    sources = sorted({*SOURCES.rglob("*.c")} - {*others})
    objects = [folder / f"{'-'.join(source.relative_to(SOURCES).with_suffix('').parts)}.o" for source in sources]

    def compile_source(source: Path, made: Path) -> None:
        _run([machine.compiler, "-c", *_OPTIONS, str(source), "-o", str(made)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_source, sources, objects))
    programs = {level: folder / f"results-{level}" for level in machine.levels}
    for level, program in programs.items():
        made = ["-static", f"-DLEVEL={level}", str(_RESULTS), *map(str, objects), "-o", str(program), "-lm"]
        _run([machine.compiler, *_OPTIONS, *made])
    return programs


def run(machine: Machine, program: Path, *, emulated: bool) -> bytes:
    """What the program writes. Raises NotHere if it fails."""
    return _run([*(machine.emulator.split() if emulated else ()), str(program)])


def _run(command: Sequence[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-2000:]
        raise NotHere(f"{' '.join(command[:3])} ended with {done.returncode}: {said}")
    return done.stdout
