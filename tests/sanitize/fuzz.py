"""Fuzzes the kernels with libFuzzer: ``python -m tests.sanitize.fuzz [SECONDS] [--targets NAMES]``, so long in all.

fuzz_planes.c has a target for each format. What passed the checks on arrival must be computed, anything else must be
refused, and no byte outside of a plane may be touched, at every level of instructions that this processor has.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penstock.kernels.isa import LEVELS

from .build import SOURCES, NoSanitizer

_REFERENCE = "levels/plain"  # without sanitizers, with which Clang takes minutes for it: others are compared with it
TARGETS = {
    "lossless": ("formats/lossless", "lossless_check"),
    "ordered": ("formats/blocks", "column_order"),
    "blocks": ("formats/blocks",),
    "nested": ("formats/nested",),
    "int8": ("formats/int8",),
    "int4": ("formats/int4",),
    "kv": ("kv/quantised",),
}
"""The kernel that each target runs, at every level, and other sources that it needs."""
FOLDER = Path("build/fuzz")
_HARNESS = Path(__file__).parent / "fuzz_planes.c"
_OPTIONS = (
    *("-O1", "-g", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas", "-Wno-unused-function", "-ffp-contract=off"),
    "-fno-sanitize-recover=undefined",
)
_SANITIZERS = "address,alignment,shift,float-cast-overflow,integer-divide-by-zero"
"""With all of undefined behaviour Clang takes minutes for a kernel. ``make sanitize`` has all, compiled by GCC."""
_INPUT_BYTES = 8192
"""Most bytes of an input: some tiles of every format."""


def build_targets(folder: Path, targets: Sequence[str]) -> dict[str, Path]:
    """Compile kernels that count what they run through, and a program for each of ``targets``. Raises NoSanitizer.

    What lies in ``folder`` and is newer than its sources is left: it takes minutes.
    """
    clang = os.environ.get("CLANG", "clang")
    if shutil.which(clang) is None:
        raise NoSanitizer(f"there is no {clang}, whose libFuzzer this needs: install Clang, or name one in CLANG")
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*SOURCES.rglob("*.h")]

    def compile_source(name: str) -> None:
        source, _, kernel = name.partition("=")
        if not _is_newer(made := _object(folder, name), [SOURCES / f"{source}.c", *headers]):
            only = [f'-DPENSTOCK_ONE="{kernel}.h"'] if kernel else []
            sanitizers = [] if source == _REFERENCE else [f"-fsanitize=fuzzer-no-link,{_SANITIZERS}"]
            _run([clang, "-c", *_OPTIONS, *sanitizers, *only, str(SOURCES / f"{source}.c"), "-o", str(made)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_source, sorted({source for name in targets for source in sources_of(name)})))
    return {name: _link(clang, folder, name) for name in targets}


def sources_of(target: str) -> list[str]:
    """Name the sources of a target: a kernel at a level as the level's source = the kernel."""
    kernel, *more = TARGETS[target]
    return ["build", *(f"levels/{level}={kernel}" for level in LEVELS), *more]


def _object(folder: Path, source: str) -> Path:
    return folder / f"{source.replace('/', '-')}.o"


def _link(clang: str, folder: Path, name: str) -> Path:
    """The program of target ``name``: its part of fuzz_planes.c with its kernels."""
    program, kernels = folder / f"fuzz-{name}", [_object(folder, source) for source in sources_of(name)]
    if not _is_newer(program, [_HARNESS, *kernels]):
        sanitizers = f"-fsanitize=fuzzer,{_SANITIZERS}"
        given = [f"-DTARGET={name}", sanitizers, str(_HARNESS), *map(str, kernels)]
        _run([clang, *_OPTIONS, *given, "-o", str(program), "-lm"])
    return program


def _is_newer(made: Path, sources: Sequence[Path]) -> bool:
    return made.exists() and all(made.stat().st_mtime > source.stat().st_mtime for source in sources)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoSanitizer(f"{command[0]} cannot build the fuzzer of kernels: {done.stderr.strip()[-2000:]}")


def make_seeds(corpus: Path, name: str) -> None:
    """Write inputs that are honest, or near it, to ``corpus``: from there the fuzzer goes on."""
    corpus.mkdir(parents=True, exist_ok=True)
    if name != "lossless":  # any bytes are a plane of the others
        for seed in range(16):
            head = bytes((seed * 13, seed * 17, seed, seed * 11, seed, seed, seed, 0))
            order = b"".join(place.to_bytes(4, "little") for place in range(32))
            (corpus / f"seed-{seed}").write_bytes(head + order)
        return
    import torch

    from penstock.kernels.formats.registry import ENCODING

    for number, (n, k) in enumerate([(16, 4), (16, 32), (17, 64), (32, 36), (48, 64), (33, 100)]):
        spread = torch.randn(n, k, generator=torch.Generator().manual_seed(number)).exp()
        for each, matrix in enumerate([spread, spread.sign(), spread**9]):
            (plane,) = ENCODING["lossless"].encode([matrix.bfloat16()], n, k)
            head = bytes((n - 16, k // 4 - 1, number, each, number, 0, 0, 0))
            (corpus / f"seed-{number}-{each}").write_bytes(head + plane.numpy().tobytes())


def fuzz(program: Path, name: str, seconds: float) -> int:
    """Run a target for ``seconds``. Returns its exit status: not 0 if it found something, which lies beside it."""
    corpus = program.parent / "corpus" / name
    make_seeds(corpus, name)
    print(f"kernels, target {name}", flush=True)
    limits = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={_INPUT_BYTES}",
        "-timeout=20",
        "-rss_limit_mb=2048",
    ]
    prefix = f"-artifact_prefix={program.parent / name}-"
    command = [str(program), str(corpus), *limits, prefix, "-print_final_stats=1", "-verbosity=0"]
    return subprocess.run(command, env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Returns whether something was found; 2 if the fuzzer cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize.fuzz", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0, help="seconds for all targets together")
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, with commas between them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where programs, inputs and findings go")
    options = parser.parse_args(arguments)
    names = options.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    try:
        programs = build_targets(options.folder.resolve(), names)
    except NoSanitizer as error:
        print(error, file=sys.stderr)
        return 2
    share = options.seconds / len(names)
    return max(int(fuzz(program, name, share) != 0) for name, program in programs.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
