"""Compiles the kernels with the address and the undefined-behaviour sanitizer."""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parents[2] / "kernels" / "csrc"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
_OPTIONS = ("-fPIC", "-O1", "-g", "-Wno-psabi", "-ffp-contract=off")
_RUNTIMES = {"gcc": ("libasan.so", "libubsan.so"), "clang": ("libclang_rt.asan-x86_64.so",)}


class NoSanitizer(Exception):
    """The compiler cannot do it. The message says what to install."""


class Sanitized(NamedTuple):
    """A library, and what a process preloads to use it."""

    library: Path
    preload: tuple[str, ...]


def build(folder: Path) -> Sanitized:
    """Compile the kernels to ``folder``. Raises NoSanitizer."""
    command = shlex.split(os.environ.get("CC", "gcc"))
    if shutil.which(command[0]) is None:
        raise NoSanitizer(f"there is no compiler {command[0]}: install GCC or Clang, or name one in CC")
    about = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    kind = "clang" if "clang" in about else "gcc"
    preload = tuple(_runtime(command, name) for name in _RUNTIMES[kind])
    library = folder / "_native_sanitized.so"
    folder.mkdir(parents=True, exist_ok=True)
    options = [*_OPTIONS, *SANITIZERS, *(("-shared-libasan",) if kind == "clang" else ("-fopenmp",))]
    sources = sorted(SOURCES.rglob("*.c"))
    objects = [folder / f"{'-'.join(source.relative_to(SOURCES).with_suffix('').parts)}.o" for source in sources]

    def compile_source(source: Path, made: Path) -> None:
        _run([*command, "-c", *options, str(source), "-o", str(made)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_source, sources, objects))
    _run([*command, "-shared", *options, *map(str, objects), "-o", str(library), "-lm"])
    return Sanitized(library, preload)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSanitizer(f"{command[0]} cannot compile the kernels with sanitizers: {done.stderr.strip()[-2000:]}")


def _runtime(command: list[str], name: str) -> str:
    found = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    path = found.strip()
    if not os.path.isabs(path):  # what is not found comes back as it is
        raise NoSanitizer(f"{command[0]} comes without {name}: install libasan and libubsan, or compiler-rt for Clang")
    return path
