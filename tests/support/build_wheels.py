"""Builds and installs Penstock as a stranger does, apart from the tree that is tested."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "site", "*.egg-info", "*.so", "*.pyd", "tests", "bench")


def copy_of_tree(into: Path) -> Path:
    """What a fresh clone has, without the tests."""
    return Path(shutil.copytree(ROOT, into, ignore=shutil.ignore_patterns(*NOT_SOURCE)))


def build_sdist(tree: Path, into: Path) -> Path:
    _build("--sdist", tree, into)
    (sdist,) = into.glob("*.tar.gz")
    return sdist


def build_wheel(sdist: Path, into: Path, **environment: str) -> Path:
    """From what the source distribution holds, and nothing else."""
    with tarfile.open(sdist) as archive:
        archive.extractall(into / "unpacked", filter="data")
    (tree,) = (into / "unpacked").iterdir()
    _build("--wheel", tree, into, **environment)
    (wheel,) = into.glob("*.whl")
    return wheel


def _build(what: str, tree: Path, into: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "build", what, "--no-isolation", "--outdir", str(into), str(tree)]
    run(command, cwd=tree, env=os.environ | environment)


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """The Python of an environment with ``wheel`` installed. It sees what the running one has, except Penstock."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    run([*command, str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "seen.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a line's own .pth files are not heeded
    return python


def run(command: list[str], **options: object) -> str:
    """What ``command`` writes; its error text is in the failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)
