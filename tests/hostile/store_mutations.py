"""Changes files of the store as a stranger would: structure first, and checksums made right again afterwards.

Each function changes one file in place and returns what it did, in a few words. The same ``rng`` does the same.
"""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from penstock.tiering.prefix import header as headers
from penstock.tiering.store.bundle.manifest import signed
from penstock.tiering.units import PAGE, align_up
from tests.hostile.mutations import mutate_bytes, mutate_document, replace_file, shorten, to_json

PREAMBLE = struct.Struct("<8sIQ32sI")

# --- small files ------------------------------------------------------------------------------------------------------


def mutate_small_file(rng: random.Random, path: Path) -> str:
    """Change a file of JSON, of lines of JSON, or of TOML; another one as bytes."""
    way = rng.random()
    if way < 0.15:
        return replace_file(rng, path)
    if way < 0.3:
        return mutate_bytes(rng, path)
    if way < 0.45:
        return _odd_text(rng, path)
    return {".json": _mutate_json, ".jsonl": _mutate_lines, ".toml": _mutate_toml}.get(path.suffix, mutate_bytes)(
        rng, path
    )


def _odd_text(rng: random.Random, path: Path) -> str:
    texts: dict[str, Callable[[], bytes]] = {
        "nested lists": lambda: b"[" * 100_000,
        "nested objects": lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "no UTF-8": lambda: path.read_bytes() + b"\xff\xfe",
        "UTF-16": lambda: path.read_bytes().decode("utf-8", "replace").encode("utf-16"),
        "NUL": lambda: path.read_bytes()[:10] + b"\0" + path.read_bytes()[10:],
        "a long number": lambda: b"9" * 100_000,
        "not a number": lambda: b"NaN",
        "a key twice": lambda: b'{"files":[],"files":[],"checksum":""}',
        "many lists": lambda: b"[" + b"[]," * 1_000_000 + b"[]]",
        "a dotted key": lambda: b"a" + b".a" * 10_000 + b"=1",
        "a table with many parts": lambda: b"[" + b"a." * 10_000 + b"a]",
    }
    name = rng.choice([*texts])
    path.write_bytes(texts[name]())
    return name


def _mutate_json(rng: random.Random, path: Path) -> str:
    document = json.loads(path.read_bytes())
    was_signed = isinstance(document, dict) and "checksum" in document
    document, done = mutate_document(rng, document)
    if was_signed and isinstance(document, dict):
        document = signed(document)
    path.write_bytes(to_json(document))
    return done


def _mutate_lines(rng: random.Random, path: Path) -> str:
    lines = path.read_bytes().splitlines()
    if not lines:
        return mutate_bytes(rng, path) if path.stat().st_size else "it was empty"
    number = rng.randrange(len(lines))
    document, done = mutate_document(rng, json.loads(lines[number]))
    lines[number] = to_json(document)
    path.write_bytes(b"\n".join(lines) + b"\n" * rng.randrange(2))
    return f"line {number}: {done}"


def _mutate_toml(rng: random.Random, path: Path) -> str:
    values = ("0x" + "f" * 20_000, "1e999", "nan", "[[1]]", '"a\\u0000b"', "{}", "9" * 30, "-1", '""', "'../..'",
              "true", "2020-01-01", '["a", 1]', '"' + "x" * 9000 + '"', "[" * 5000, "{a=" * 3000)  # fmt: skip
    lines = path.read_text().splitlines()
    at = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    number, value = rng.choice(at), rng.choice(values)
    key = lines[number].partition("=")[0].strip()
    lines[number] = rng.choice((f"{key} = {value}", f"{key} = {value}", f"[{key}]", f"{key}{key} = 1", f"{key} ="))
    path.write_text("\n".join(lines) + "\n")
    return shorten(lines[number])


# --- prefix files -----------------------------------------------------------------------------------------------------


@dataclass
class PrefixParts:
    """A prefix file, taken apart. ``content`` are its blocks and its state."""

    version: int
    document: Any
    tokens: bytes
    checksums: bytes
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "PrefixParts":
        """Those of a file that is as it should be."""
        raw = path.read_bytes()
        _, version, start, _, size = PREAMBLE.unpack_from(raw)
        document = json.loads(raw[PREAMBLE.size : PREAMBLE.size + size])
        body = raw[PREAMBLE.size + size : start]
        tokens = 4 * document["block"] * document["blocks"]
        checksums = 8 * (document["blocks"] + bool(document["state_parts"]))
        return cls(version, document, body[:tokens], body[tokens : tokens + checksums], raw[start:])

    def write(self, path: Path, *, start: int | None = None, size: int | None = None) -> None:
        """Put the file together, with a right hash. ``start`` and ``size`` are what it says instead."""
        text = to_json(self.document)
        body = text + self.tokens + self.checksums
        length = align_up(PREAMBLE.size + len(body), PAGE)
        body = body.ljust(length - PREAMBLE.size, b"\0")
        said = length if start is None else start, len(text) if size is None else size
        blank = PREAMBLE.pack(headers.MAGIC, self.version, said[0], bytes(32), said[1])
        digest = hashlib.sha256(blank + body).digest()
        path.write_bytes(PREAMBLE.pack(headers.MAGIC, self.version, said[0], digest, said[1]) + body + self.content)


def mutate_prefix_file(rng: random.Random, path: Path) -> str:
    """Change a stored prompt. What it says stays hashed and checked as it should be, unless bytes are changed."""
    way = rng.choice(
        ("bytes", "document", "document", "document", "roles", "shape", "tokens", "numbers", "lengths", "no file")
    )
    if way == "bytes":
        return mutate_bytes(rng, path)
    if way == "no file":
        return replace_file(rng, path)
    parts = PrefixParts.read(path)
    if way == "lengths":
        start, size = rng.choice((0, PAGE, 3, 1 << 27, 1 << 63, None)), rng.choice((0, 1, 1 << 20, (1 << 32) - 1, None))
        parts.write(path, start=start, size=size)
        return f"lengths {start}, {size}"
    done = {
        "document": _change_document,
        "roles": _change_roles,
        "shape": _change_shape,
        "tokens": _change_tokens,
        "numbers": _change_numbers,
    }[way](rng, parts)
    parts.write(path)
    return f"{way}: {done}"


def _change_document(rng: random.Random, parts: PrefixParts) -> str:
    parts.document, done = mutate_document(rng, parts.document)
    return done


def _change_roles(rng: random.Random, parts: PrefixParts) -> str:
    tensors = rng.choice([each for each in (parts.document["parts"], parts.document["state_parts"]) if each])
    one, other = rng.choice(tensors), rng.choice(tensors)
    kind = rng.choice(("layers", "kinds", "both", "order", "none"))
    match kind:
        case "layers":
            one["layer"], other["layer"] = other["layer"], one["layer"]
        case "kinds":
            one["kind"], other["kind"] = other["kind"], one["kind"]
        case "both":
            for field in ("layer", "kind", "index"):
                one[field], other[field] = other[field], one[field]
        case "order":
            rng.shuffle(tensors)
        case "none":
            tensors.remove(one)
    return kind


def _change_shape(rng: random.Random, parts: PrefixParts) -> str:
    tensor = rng.choice([*parts.document["parts"], *parts.document["state_parts"]])
    shape, kind = tensor["shape"], rng.choice(("split", "huge", "transposed", "dtype", "negative", "empty"))
    match kind:
        case "split":  # as many numbers, in another form
            tensor["shape"] = [1, shape[-2], int(np.prod(shape)) // max(1, shape[-2])]
        case "huge":
            shape[rng.randrange(len(shape))] = rng.choice((1 << 31, 1 << 40, 1 << 62))
        case "transposed":
            shape.reverse()
        case "dtype":
            tensor["dtype"] = rng.choice(("float16", "bfloat16", "float64", "int8", "complex64", "bits8", "__class__"))
        case "negative":
            shape[0], shape[-1] = -shape[0], -shape[-1]
        case "empty":
            tensor["shape"] = []
    return f"{kind} {tensor['shape']}"


def _change_tokens(rng: random.Random, parts: PrefixParts) -> str:
    tokens = np.frombuffer(parts.tokens, np.uint32).copy()
    if not len(tokens):
        return "there are none"
    kind = rng.choice(("one", "largest", "cut", "more", "more blocks"))
    match kind:
        case "one":
            tokens[rng.randrange(len(tokens))] ^= 1
        case "largest":
            tokens[:] = 0xFFFFFFFF
        case "cut":
            tokens = tokens[: len(tokens) // 2]
        case "more":
            tokens = np.concatenate([tokens, tokens])
        case "more blocks":
            parts.document["blocks"] *= rng.choice((2, 1000, 1 << 20))
    parts.tokens = tokens.tobytes()
    return kind


def _change_numbers(rng: random.Random, parts: PrefixParts) -> str:
    """Numbers that are not finite, under a right checksum."""
    about = parts.document
    count, found = about["blocks"], [*_tensors(about)]
    offset, dtype, length, extent = rng.choice(found)
    kind = {"bfloat16": np.uint16, "float16": np.uint16, "float64": np.uint64}.get(dtype, np.uint32)
    content = bytearray(parts.content)
    view = np.frombuffer(content, kind, length // np.dtype(kind).itemsize, offset)
    view[rng.randrange(len(view))] = np.iinfo(kind).max >> rng.randrange(2)
    begin, end = _extents(about)[extent]
    checksums = bytearray(parts.checksums)
    checksums[8 * extent : 8 * extent + 8] = xxhash.xxh3_64_intdigest(content[begin:end]).to_bytes(8, "little")
    parts.content, parts.checksums = bytes(content), bytes(checksums)
    return f"not a number in extent {extent} of {count}"


def _length(tensor: Any) -> int:
    size = {"bfloat16": 2, "float16": 2, "float64": 8, "float32": 4}.get(tensor["dtype"], 1)
    return int(np.prod(tensor["shape"])) * size


def _extents(about: Any) -> list[tuple[int, int]]:
    """Where blocks and the state begin and end, behind the header."""
    at, found = 0, []
    for tensors in (*[about["parts"]] * about["blocks"], *[about["state_parts"]] * bool(about["state_parts"])):
        length = sum(align_up(_length(tensor), PAGE) for tensor in tensors)
        found.append((at, at + length))
        at += length
    return found


def _tensors(about: Any) -> Any:
    """Offset, dtype, length and extent of each tensor."""
    for number, (at, _) in enumerate(_extents(about)):
        for tensor in about["parts"] if number < about["blocks"] else about["state_parts"]:
            if _length(tensor) >= 8:
                yield at, tensor["dtype"], _length(tensor), number
            at += align_up(_length(tensor), PAGE)


# --- traces and recordings --------------------------------------------------------------------------------------------


def mutate_trace(rng: random.Random, path: Path) -> str:
    """Change a routing trace; its checksum is right, unless bytes are changed."""
    from safetensors import safe_open
    from safetensors.numpy import save

    from penstock.runtime.routing import routes

    way = rng.choice(("bytes", "no file", "about", "about", "arrays", "arrays"))
    if way == "bytes":
        return mutate_bytes(rng, path)
    if way == "no file":
        return replace_file(rng, path)
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        header = dict(file.metadata())
    about = json.loads(header["about"])
    if way == "about":
        about, done = mutate_document(rng, about)
    else:
        done = _change_arrays(rng, tensors)
    header["about"] = to_json(about).decode("utf-8", "replace")
    header["checksum"] = routes._checksum(header["about"], tensors)
    path.write_bytes(save(tensors, header))
    return f"{way}: {done}"


def _change_arrays(rng: random.Random, tensors: dict[str, Any]) -> str:
    name = rng.choice([*tensors])
    array = tensors[name]
    kind = rng.choice(("largest", "dtype", "shape", "longer", "gone", "renamed", "empty", "float"))
    match kind:
        case "largest":
            tensors[name] = np.full_like(array, np.iinfo(array.dtype).max)
        case "dtype":
            tensors[name] = array.astype(rng.choice((np.int64, np.uint16, np.int8, np.uint32)))
        case "shape":
            tensors[name] = array.reshape(-1, 1) if array.ndim == 1 else array.reshape(-1)
        case "longer":
            tensors[name] = np.concatenate([array, array])
        case "gone":
            del tensors[name]
        case "renamed":
            tensors[rng.choice(("chosen.99", "x", "probabilities.-1"))] = tensors.pop(name)
        case "empty":
            tensors[name] = array[:0]
        case "float":
            tensors[name] = np.full(array.shape, np.nan, np.float32)
    return f"{kind} {name}"


def mutate_recording(rng: random.Random, path: Path) -> str:
    """Change the recording of a run; its checksum and count are right, unless bytes are changed."""
    way = rng.choice(("bytes", "no file", "line", "line", "line", "setup", "setup", "order"))
    if way == "bytes":
        return mutate_bytes(rng, path)
    if way == "no file":
        return replace_file(rng, path)
    lines = path.read_text().splitlines()
    end = json.loads(lines.pop())
    number = 1 if way == "setup" else rng.randrange(2, len(lines))
    if way == "order":
        other = rng.randrange(2, len(lines))
        lines[number], lines[other] = lines[other], lines[number]
        done = f"lines {number} and {other}"
    else:
        document, done = mutate_document(rng, json.loads(lines[number]))
        lines[number] = to_json(document).decode("utf-8", "replace")
    digest = hashlib.blake2b("".join(f"{line}\n" for line in lines).encode(), digest_size=16).hexdigest()
    end = end | {"steps": len(lines) - 2, "checksum": digest}
    path.write_text("\n".join([*lines, json.dumps(end, separators=(",", ":"))]) + "\n")
    return f"{way} {number}: {done}"
