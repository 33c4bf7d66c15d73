"""What a guided fuzzer does with bytes, by format. Each target imports what it tries when it is made, instrumented."""

import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

Target = Callable[[bytes], None]


def import_others() -> None:
    """Import what penstock needs of others, so that only penstock is instrumented, which is slow."""
    for name in ("torch", "numpy", "pydantic", "safetensors.numpy", "psutil", "rich", "typer"):
        importlib.import_module(name)


def guarded(target: Target) -> Target:
    """``target``, of which errors of Penstock may come; anything else is a finding."""
    from penstock.tiering.errors import PenstockError

    def run(data: bytes) -> None:
        with suppress(PenstockError):
            target(data)

    return run


def _file() -> Path:
    """A file in memory that a target writes its input to."""
    room = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=room if os.access(room, os.W_OK) else None)) / "file"


def manifest() -> Target:
    """The signature is made right."""
    from penstock.tiering.store.bundle.manifest_file import parse

    def run(data: bytes) -> None:
        text = data.decode(errors="replace")
        digest = hashlib.sha256(f"{text}}}".encode()).hexdigest()
        parse(f'{text},"checksum":"{digest}"}}', "manifest.json")

    return run


def gguf() -> Target:
    """The header, with what is told of the model."""
    from penstock.runtime.checkpoints.files.gguf_header import parse_gguf_header

    file = _file()

    def run(data: bytes) -> None:
        file.write_bytes(data)
        parse_gguf_header(file)

    return run


def safetensors() -> Target:
    """The header. The length before it is made right in every second input, which no mutation would hit."""
    from penstock.runtime.checkpoints.files.safetensors_file import parse_header

    file = _file()

    def run(data: bytes) -> None:
        length, end = int.from_bytes(data[:8], "little"), data.rfind(b"}") + 1
        if length % 2 and end > 8:
            data = (end - 8).to_bytes(8, "little") + data[8:]
        file.write_bytes(data)
        parse_header(file)

    return run


def json() -> Target:
    """A small file of a checkpoint, and whether it asks for too much."""
    from penstock.runtime.checkpoints.files.bounds import WITHOUT_FILES, absurd
    from penstock.runtime.checkpoints.files.json_file import read_object

    file = _file()

    def run(data: bytes) -> None:
        file.write_bytes(data)
        absurd(read_object(file), WITHOUT_FILES)

    return run


def prefix() -> Target:
    """The preamble, with length and hash, is made right. An input has the length of the JSON first."""
    import struct

    from penstock.tiering.prefix import header
    from penstock.tiering.units import PAGE, align_up

    def run(data: bytes) -> None:
        size, body = int.from_bytes(data[:4].ljust(4, b"\0"), "little"), data[4:]
        length = align_up(56 + len(body), PAGE)
        body = body.ljust(length - 56, b"\0")
        blank = struct.pack("<8sIQ32sI", header.MAGIC, header.VERSION, length, bytes(32), size)
        digest = hashlib.sha256(blank + body).digest()
        header.parse(struct.pack("<8sIQ32sI", header.MAGIC, header.VERSION, length, digest, size) + body, "file.kv")

    return run


def recording() -> Target:
    """The last line is made right, and what is read is replayed."""
    import json as plain

    from penstock.tiering.sim.recording import first_difference, first_kv_difference, read

    def run(data: bytes) -> None:
        lines = data.decode(errors="replace").splitlines()
        digest = hashlib.blake2b("".join(f"{line}\n" for line in lines).encode(), digest_size=16).hexdigest()
        end = plain.dumps({"steps": len(lines) - 2, "whole": True, "checksum": digest})
        found = read([*lines, end])
        first_difference(found)
        first_kv_difference(found)

    return run


def routes() -> Target:
    """The checksum of a file that can be read is made right."""
    from safetensors.numpy import load, save

    from penstock.runtime.routing.routes import FORMAT, VERSION, Routes, _checksum

    file = _file()

    def run(data: bytes) -> None:
        try:
            tensors = load(data)
            length = int.from_bytes(data[:8], "little")
            import json as plain

            about = plain.loads(data[8 : 8 + length])["__metadata__"]["about"]
            data = save(
                tensors,
                {"format": FORMAT, "version": VERSION, "about": about, "checksum": _checksum(about, tensors)},
            )
        except Exception:
            pass  # as it is, then
        file.write_bytes(data)
        sum(len(layer) for step in Routes.load(file).steps() for layer in step)

    return run


def journal() -> Target:
    """The journal of a plan of some blocks, and the drives: damage means that there is none."""
    from penstock.tiering.store.bundle.journal import DRIVES, read, read_drives
    from penstock.tiering.store.bundle.manifest import Block
    from penstock.tiering.units import BlockId, Extent

    file = _file()
    plan: Sequence[Block] = [
        Block(BlockId("dense", "layers.0", 0), Extent(0, 4096 * at, 4096), "0" * 16, (), False) for at in range(3)
    ]

    def run(data: bytes) -> None:
        file.write_bytes(data)
        assert len(read(file, plan)) <= len(plan)
        (file.parent / DRIVES).write_bytes(data)
        read_drives(file.parent)

    return run


def toml() -> Target:
    """The user's configuration."""
    from penstock.runtime.config.config import Config

    file = _file()

    def run(data: bytes) -> None:
        file.write_bytes(data)
        Config.load(file)

    return run


TARGETS: dict[str, Callable[[], Target]] = {
    "manifest": manifest,
    "gguf": gguf,
    "safetensors": safetensors,
    "json": json,
    "prefix": prefix,
    "recording": recording,
    "routes": routes,
    "journal": journal,
    "toml": toml,
}
