"""Honest files of every format, small, from which a guided fuzzer goes on."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


def manifests() -> list[bytes]:
    """The unsigned JSON of manifests: a plain one, one on two drives."""
    from penstock.tiering.store.bundle.manifest import Block, BundleDrive, DataFile, Manifest, dump, place_tensors
    from penstock.tiering.units import BlockId, Extent

    specs, length = place_tensors([("a.weight", "float32", (4, 8), 128), ("a.bias", "float32", (4,), 16)])
    blocks = tuple(
        Block(BlockId(kind, "layers.0", part), Extent(0, at * length, length), "0" * 16, specs, kind == "dense")
        for at, (kind, part) in enumerate([("dense", 0), ("expert", 0), ("expert", 1)])
    )
    plain = Manifest("x", "/m", "float32", "none", {"b": "a.weight"}, (DataFile("data-00000.bin", 3 * length),), blocks)
    files = (DataFile("data-00000.bin", 3 * length), DataFile("data-00001.bin", 0, 1))
    drives = (BundleDrive("", 10), BundleDrive("/s/b.0123456789abcdef", 20))
    striped = Manifest("x", "/m", "float32", "none", {}, files, blocks, drives, ("a note",))
    return [dump(manifest).rpartition(',"checksum":')[0].encode() for manifest in (plain, striped)]


def gguf_files() -> list[bytes]:
    """A file with values of some types, arrays, and two tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c"),
        text("llama.list") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3),
    ]
    tensors = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 32, 0, 96),
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
    return [head + bytes(-len(head) % 32) + bytes(96 + 128)]


def safetensors_files() -> list[bytes]:
    """A file with two tensors and metadata, and one without."""
    from safetensors.numpy import save

    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.uint8)}
    return [save(tensors, {"format": "pt"}), save({"c": np.zeros((0, 4), np.float16)})]


def configurations() -> list[bytes]:
    """Configurations of a dense model and of one with experts."""
    dense = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "rope_scaling": {"factor": 2.0}}
    experts = {"text_config": {"num_experts": 8, "n_layers": 4, "first_k_dense_replace": [1]}, "eos_token_id": [1, 2]}
    return [json.dumps(each).encode() for each in (dense, experts)]


def prefix_headers() -> list[bytes]:
    """Bodies of headers: length of the JSON, and all behind the preamble."""
    from penstock.tiering.prefix.header import dump, lay_out
    from tests.support.prefixes import PARTS, STATE, chain

    found = []
    for state in ((), STATE):
        made = lay_out(chain(1, 2, 3), 1, label="m", parts=PARTS, state_parts=state, explicit=True)
        raw = dump(made.with_checksums([f"{n:016x}" for n in range(len(made.extents))]))
        found.append(raw[52:56] + raw[56:].rstrip(b"\0"))
    return found


def recordings() -> list[bytes]:
    """The lines with steps of some random runs, and their setup."""
    from penstock.tiering.sim.recording import Writer
    from tests.support.worlds.runs import random_run

    found = []
    for seed in (3, 4):
        setup = random_run(seed).world.setup()
        writer, planner = Writer(setup), setup.planner()
        lines = [writer.head]
        for time, event in enumerate(_events(setup, random.Random(seed))):
            lines.append(writer.step(float(time), event, planner.handle(event, float(time))))
        found.append("".join(lines).encode())
    return found


def _events(setup: object, dice: random.Random) -> list:  # type: ignore[type-arg]
    from penstock.tiering.events import Acquire, Begin, End, Expect

    blocks = list(setup.homes)  # type: ignore[attr-defined]
    some = tuple(dice.sample(blocks, min(2, len(blocks))))
    return [Begin(0), Expect(0, some, (), 0.5), Acquire(1, 0, some[:1]), End(0)]


def traces() -> list[bytes]:
    """A routing trace."""
    from tests.support.routes import made_up

    with TemporaryDirectory() as folder:
        path = Path(folder) / "routes"
        made_up().save(path)
        return [path.read_bytes()]


def journals() -> list[bytes]:
    """A line of a journal, one of another block, drives."""
    line = b'[["dense","layers.0",0],[0,0,4096],"0123456789abcdef"]\n'
    return [line, line.replace(b"[0,0,", b"[0,4096,"), b'[["",100],["/other",50]]']


def settings() -> list[bytes]:
    """A configuration of the user: the keys with their usual values, and some others."""
    from penstock.runtime.config.config import Config

    return [
        b'[memory]\nhost = "64MiB"\n\n[io]\nbackend = "threads"\ndepth = 4\n[store]\npath = "x"\nstripes = ["a"]\n',
        Config().to_toml().encode()[:4000],
    ]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "manifest": manifests,
    "gguf": gguf_files,
    "safetensors": safetensors_files,
    "json": configurations,
    "prefix": prefix_headers,
    "recording": recordings,
    "routes": traces,
    "journal": journals,
    "toml": settings,
}
