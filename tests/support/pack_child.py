"""A process that packs and is killed, or packs beside another one; started by ``packing.child``.

    pack_child.py kill CHECKPOINT STORES POINT...    a packing per POINT into STORES/POINT, killed there
    pack_child.py together CHECKPOINT STORE N        N packings at once; prints how many of them wrote
    pack_child.py memory SOURCE STORE BUDGET FORMAT...
                                                     prints for each format, one after the other in one process, by how
                                                     many bytes packing raised the resident set

Behind these, ``--stripe FOLDER SPEED SPEED`` deals to a second drive as well (with POINTs to FOLDER/POINT), as if the
store's and that one had these speeds.

A POINT is the number of a call of ``Progress.advance``, or where the bundle is finished: "manifest", "rename".
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch  # before the forks, or each would import it anew
import transformers  # noqa: F401

from penstock.kernels.memory.heap import trim
from penstock.runtime.checkpoints.open import open_source
from penstock.runtime.machine import drives
from penstock.runtime.packing.arrange.formats import Rules
from penstock.runtime.packing.pack import pack
from penstock.tiering.progress import Quiet
from penstock.tiering.store.bundle import writer
from penstock.tiering.units import MiB


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(Quiet):
    """Progress that ends the process at its ``n``-th advance."""

    def __init__(self, n: int) -> None:
        self.left = n

    def advance(self, n: int) -> None:
        self.left -= 1
        if self.left < 0:
            die()


class Notes(Quiet):
    """Progress that knows whether anything was packed."""

    packed = False

    def start(self, label: str, total_bytes: int) -> None:
        self.packed |= label == "packing"


def forked(work: Callable[[], int]) -> int:
    """The process id of a copy of this process that does ``work`` and exits with its result."""
    if child := os.fork():
        return child
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def stripes_of(folder: str | None, name: str = "") -> tuple[Path, ...]:
    return (Path(folder) / name,) if folder else ()


def kill(checkpoint: Path, stores: Path, points: list[str], stripe: str | None) -> None:
    for point in points:

        def work(point: str = point) -> int:
            writer.COMMIT = 40_000
            if point == "manifest":
                writer.write_durably = die
            elif point == "rename":
                os.rename = die
            progress = DieAt(int(point)) if point.isdigit() else Quiet()
            stripes = stripes_of(stripe, point)
            pack(checkpoint, store=stores / point, host_memory=32 * MiB, stripes=stripes, progress=progress)
            return 0

        _, status = os.waitpid(forked(work), 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the packing to be killed at {point} ended by itself: {status}")


def together(checkpoint: Path, store: Path, count: int, stripe: str | None) -> None:
    def work() -> int:
        notes = Notes()
        pack(checkpoint, store=store, host_memory=32 * MiB, stripes=stripes_of(stripe), progress=notes).close()
        return int(notes.packed)

    children = [forked(work) for _ in range(count)]
    print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def memory(source: Path, store: Path, budget: int, formats: list[str]) -> None:
    torch.set_num_threads(2)
    model_type = open_source(source).config.model_type
    importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    before = resident("VmRSS")
    for name in formats:
        trim()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        pack(source, store=store / name, host_memory=budget, rules=Rules(name)).close()
        print(resident("VmHWM") - before)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    mode, source, place, *rest = sys.argv[1:]
    second: str | None = None
    if "--stripe" in rest:
        at = rest.index("--stripe")
        second, *speeds = rest[at + 1 :]
        rest = rest[:at]
        root = Path(second)
        drives.drive_speed = lambda folder, *_, **__: float(speeds[folder.is_relative_to(root)])
    if mode == "kill":
        kill(Path(source), Path(place), rest, second)
    elif mode == "together":
        together(Path(source), Path(place), int(rest[0]), second)
    else:
        memory(Path(source), Path(place), int(rest[0]), rest[1:])
