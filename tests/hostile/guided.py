"""Files changed by a fuzzer that sees which code they reach: ``python -m tests.hostile.guided TARGET [OPTIONS]``.

OPTIONS are libFuzzer's, such as -max_total_time=60, or a file to play again. ``--all --seconds N`` plays every target
in a process of its own, N seconds in all. Each must read what it is given, or raise what its module documents.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

FOLDER = Path("build/fuzz")
MISSING = "there is no atheris: pip install -e '.[fuzz]' installs it, on Linux"
_INPUT_BYTES = 4096
_TOO_LONG, _TOO_MUCH = 20, 2048
"""Seconds and mebibytes that an input may take."""


def is_there() -> bool:
    """Whether atheris is installed."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def make_seeds(name: str, corpus: Path) -> None:
    """Write honest files of target ``name`` to ``corpus``."""
    from tests.hostile.seeds import SEEDS

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]()):
        (corpus / f"seed-{number}").write_bytes(seed)


def fuzz(name: str, options: Sequence[str], folder: Path) -> None:
    """Fuzz target ``name`` in this process, which it ends. Makes seeds in a process before, without instruments."""
    import atheris

    corpus = folder / "corpus" / f"file-{name}"
    subprocess.run([sys.executable, "-m", "tests.hostile.guided", name, "--seeds", str(corpus)], check=True)
    from tests.hostile.mutators import SPLITS, mutate
    from tests.hostile.targets import TARGETS, guarded, import_others

    import_others()
    with atheris.instrument_imports(include=["penstock"]):
        target: Callable[[bytes], None] = guarded(TARGETS[name]())
    limits = [f"-max_len={_INPUT_BYTES}", f"-timeout={_TOO_LONG}", f"-rss_limit_mb={_TOO_MUCH}"]
    prefix = f"-artifact_prefix={folder / name}-"
    files = [option for option in options if not option.startswith("-")]
    command = [sys.argv[0], *limits, prefix, "-print_final_stats=1", *options, *([] if files else [str(corpus)])]

    def plainly(data: bytes, most: int) -> bytes:
        return bytes(atheris.Mutate(data, most))  # which only a running fuzzer has

    if name in SPLITS:
        atheris.Setup(command, target, custom_mutator=partial(mutate, SPLITS[name], plainly))
    else:
        atheris.Setup(command, target)
    atheris.Fuzz()


def fuzz_all(names: Sequence[str], seconds: float, folder: Path) -> int:
    """Fuzz ``names`` one after the other for ``seconds`` in all. Returns whether something was found."""
    found = []
    for name in names:
        print(f"files, target {name}", flush=True)
        share = f"-max_total_time={max(1, round(seconds / len(names)))}"
        command = [sys.executable, "-m", "tests.hostile.guided", name, share, "-verbosity=0", "--folder", str(folder)]
        if subprocess.run(command, check=False).returncode:
            found.append(name)
    return int(bool(found))


def main(arguments: Sequence[str]) -> int:
    """Run the command line. Returns whether something was found; 2 if there is no atheris."""
    from tests.hostile.seeds import SEEDS

    parser = argparse.ArgumentParser(prog="python -m tests.hostile.guided", description=__doc__)
    parser.add_argument("target", nargs="?", choices=[*SEEDS])
    parser.add_argument("--all", action="store_true", help="play every target")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds for all targets together")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where inputs and findings go")
    parser.add_argument("--seeds", type=Path, help=argparse.SUPPRESS)
    options, more = parser.parse_known_args(arguments)
    if options.seeds:
        make_seeds(options.target, options.seeds)
        return 0
    if not is_there():
        print(MISSING, file=sys.stderr)
        return 2
    if options.all:
        return fuzz_all([*SEEDS], options.seconds, options.folder.resolve())
    if options.target is None:
        parser.error("name a target, or --all")
    fuzz(options.target, more, options.folder.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
