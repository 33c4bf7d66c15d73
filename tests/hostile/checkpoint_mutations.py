"""Changes to the files of a checkpoint, in place, as a stranger would make them. Each says in a few words what it did.

They keep what is not changed as it is, so that the rest of a file leads far into the code that reads it.
"""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGE = (0, 1, 2, 3, 5, 31, 255, 65537, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
"""Numbers that are at the end of something, or one beside it."""

JSON_VALUES: tuple[Any, ...] = (
    None, True, [], {}, "", "x", "\0", "9" * 30, -1, 0, 1, 2, 3, 7, 1 << 31, 1 << 62, 10**12, 10**30, 0.5, -1.5,
    float("inf"), float("nan"), [1], [[]], {"a": 1}, "../../x", "kernels-community/flash-attn2", 20_000, 100_000,
)  # fmt: skip
DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "I64",
    "I32",
    "I8",
    "U8",
    "BOOL",
    "C64",
    "X",
)


def mutate_gguf(rng: random.Random, path: Path) -> str:
    """Change the header of a GGUF file: a number, a string, or raw bytes."""
    raw = bytearray(path.read_bytes())
    fields = _gguf_fields(raw)
    what = rng.choice(["number"] * 6 + ["string", "bytes", "cut", "insert"])
    if what == "number":
        said = _change_number(rng, raw, *rng.choice([field for field in fields if field[2] != "s"]))
    elif what == "string":
        said = _change_string(rng, raw, *rng.choice([field for field in fields if field[2] == "s"]))
    else:
        end = max(at for _, at, _ in fields)
        said = _change_bytes(rng, raw, what, end)
    path.write_bytes(raw)
    return said


def mutate_safetensors(rng: random.Random, path: Path) -> str:
    """Change the header of a safetensors file: an entry, its length, or raw bytes."""
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", raw)
    what = rng.choice(["entry"] * 6 + ["length", "bytes", "cut", "insert", "text"])
    if what == "entry":
        header = json.loads(raw[8 : 8 + length])
        said = _change_entry(rng, header)
        text = json.dumps(header).encode()
        raw[: 8 + length] = struct.pack("<Q", len(text)) + text
    elif what == "length":
        said = _change_number(rng, raw, "header length", 0, "Q")
    elif what == "text":
        text = rng.choice([b"[" * 50_000, b"{}", b"[]", b'{"a":' * 5000, b"\xff\xfe", b"1" * 10_000, b'{"a":1,"a":2}'])
        raw[: 8 + length] = struct.pack("<Q", len(text)) + text
        said = f"header {text[:10]!r}"
    else:
        said = _change_bytes(rng, raw, what, 8 + length)
    path.write_bytes(raw)
    return said


def mutate_json(rng: random.Random, path: Path) -> str:
    """Change a JSON file: a value somewhere, a key, the whole, or its text."""
    text = path.read_text()
    what = rng.choice(["value"] * 7 + ["key", "whole", "text"])
    if what in ("value", "key"):
        document = json.loads(text)
        place, key = rng.choice(list(_places(document)))
        if what == "value":
            value = rng.choice(JSON_VALUES) if rng.random() < 0.7 else _near(rng, place[key])
            said = f"{key}: {place[key]!r} -> {value!r}"[:100]
            place[key] = value
        elif isinstance(place, dict):
            said = f"{key} is gone"
            value = place.pop(key)
            if rng.random() < 0.5:
                place[rng.choice([f"{key}x", "auto_map", "", "attn_implementation"])] = value
        else:
            said, place[:] = "a list twice as long", [*place, *place]
        path.write_text(json.dumps(document))
        return said
    if what == "whole":
        new = rng.choice(["[]", "1", '"x"', "null", "", "{}", "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "NaN"])
        path.write_text(new)
        return f"all of it is {new[:10]!r}"
    raw = bytearray(text.encode())
    said = _change_bytes(rng, raw, rng.choice(["bytes", "cut", "insert"]), len(raw))
    path.write_bytes(raw)
    return said


def mutate_quantised(rng: random.Random, folder: Path) -> str:
    """Change what belongs to quantised weights in ``folder``: dtype, shape or numbers of a part, or how they are."""
    what = rng.choice(["part"] * 4 + ["numbers"] * 3 + ["config"] * 3)
    if what == "config":
        path = folder / "config.json"
        document = json.loads(path.read_text())
        place, key = rng.choice(list(_places(document.get("quantization_config") or document)))
        value = rng.choice(JSON_VALUES) if rng.random() < 0.6 else _near(rng, place[key])
        said = f"quantization_config {key}: {place[key]!r} -> {value!r}"[:100]
        place[key] = value
        path.write_text(json.dumps(document))
        return said
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    name = rng.choice(_parts(header))
    entry = header[name]
    begin, end = entry["data_offsets"]
    if what == "numbers":
        new = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x80", b"\x7c", bytes([rng.randrange(256)])])
        at = 8 + length + rng.randrange(begin, max(begin + 1, end))
        count = rng.choice([1, 2, 4, end - begin])
        count = min(count, 8 + length + end - at)
        raw[at : at + count] = new * count
        path.write_bytes(raw)
        return f"{name}: {count} bytes are {new!r}"
    said = _change_part(rng, name, header)
    text = json.dumps(header).encode()
    raw[: 8 + length] = struct.pack("<Q", len(text)) + text
    path.write_bytes(raw)
    return said


def _parts(header: dict[str, Any]) -> list[str]:
    """Tensors of quantised weights: those that are no plain ``NAME.weight``, if there are such."""
    names = [name for name in header if name != "__metadata__"]
    return [name for name in names if not name.endswith("norm.weight") and "embed" not in name] or names


def _change_part(rng: random.Random, name: str, header: dict[str, Any]) -> str:
    """Another dtype or shape of the same bytes, another name, or none at all."""
    entry = header[name]
    shape = entry["shape"]
    kind = rng.choice(["transpose", "flat", "dtype", "split", "rename", "more"])
    if kind == "transpose":
        entry["shape"] = shape[::-1]
    elif kind == "flat":
        size = 1
        for each in shape:
            size *= each
        entry["shape"] = rng.choice([[size], [1, size], [size, 1], [1, *shape], [*shape, 1], []])
    elif kind == "dtype":
        alike = (
            ("F32", "I32", "U32"),
            ("F16", "BF16", "I16"),
            ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"),
            ("F64", "I64"),
        )
        entry["dtype"] = rng.choice(next((own for own in alike if entry["dtype"] in own), DTYPES))
    elif kind == "split" and shape and shape[-1] % 2 == 0:
        entry["shape"] = [*shape[:-2], 2 * shape[-2], shape[-1] // 2] if len(shape) > 1 else [2, shape[-1] // 2]
    elif kind == "rename":
        header[name + "x"] = header.pop(name)
    else:
        header[f"{name.rpartition('.')[0]}.{rng.choice(['scales', 'weight', 'g_idx', 'weight_scale', 'SCB'])}"] = dict(
            entry
        )
    return f"{name}: {kind}"


def _change_entry(rng: random.Random, header: dict[str, Any]) -> str:
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = rng.choice(["dtype", "shape", "offsets", "name", "value", "gone", "twin"])
    if kind == "dtype":
        entry["dtype"] = rng.choice((*DTYPES, None, 5, ["F32"]))
    elif kind == "shape":
        shape = entry["shape"]
        options: list[Any] = [
            shape[::-1],
            [],
            [-1, *shape],
            [*shape, 0],
            [*shape, 1 << 62],
            "12",
            [1.0],
            [True],
            [10**30],
            [1] * 70,
        ]
        entry["shape"] = rng.choice(options)
    elif kind == "offsets":
        begin, end = entry["data_offsets"]
        by = rng.choice([1, 4, -4, 64, end - begin, 1 << 62])
        options = [
            [begin + by, end + by],
            [begin, end + by],
            [end, begin],
            [begin],
            [begin, end, end],
            None,
            [0, end - begin],
        ]
        entry["data_offsets"] = rng.choice(options)
    elif kind == "name":
        header[rng.choice([name + "x", "", "\ud800", "a\0b", "../x"])] = header.pop(name)
    elif kind == "value":
        header[name] = rng.choice(JSON_VALUES)
    elif kind == "gone":
        del header[name]
    else:
        header[name + ".twin"] = dict(entry)
    return f"{name}: {kind} {str(header.get(name))[:60]}"


def _places(document: Any) -> Any:
    """Each place of a JSON document: a container and a key of it."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, 2 * value, value // 2, -value, value * 1000, value + 64])
    if isinstance(value, float):
        return rng.choice([value * 2, -value, value * 1e30, 0.0])
    if isinstance(value, str):
        return rng.choice([value[:-1], value + "x", value.upper(), value * 1000, value.replace("_", "/")])
    return [value]


def _change_number(rng: random.Random, raw: bytearray, name: str, at: int, code: str) -> str:
    size = struct.calcsize(code)
    (old,) = struct.unpack_from(f"<{code}", raw, at)
    if code in "fd":
        new: Any = rng.choice([0.0, -1.0, 1e30, float("inf"), float("nan"), old * 2])
    else:
        near = (old + 1, old - 1, old * 2, old // 2, old + 32, old ^ (1 << rng.randrange(8 * size)), 0)
        new = (rng.choice(near) if rng.random() < 0.6 else rng.choice(LARGE)) % (1 << (8 * size))
        code = code.upper()
    struct.pack_into(f"<{code}", raw, at, new)
    return f"{name}: {old} -> {new}"


def _change_string(rng: random.Random, raw: bytearray, name: str, at: int, _: str) -> str:
    (length,) = struct.unpack_from("<Q", raw, at)
    old = bytes(raw[at + 8 : at + 8 + length])
    new = rng.choice(
        [
            b"",
            b"\xff\xfe",
            old[:-1],
            old + b"x",
            b"general.architecture",
            b"blk.0.attn_q.weight",
            b"\0" * 9,
            b"a" * 70_000,
        ]
    )
    raw[at : at + 8 + length] = struct.pack("<Q", len(new)) + new
    return f"{name} {old[:40]!r} -> {new[:20]!r}"


def _change_bytes(rng: random.Random, raw: bytearray, what: str, end: int) -> str:
    at = rng.randrange(max(1, end))
    if what == "cut":
        count = rng.choice([1, 2, 8, 100, len(raw)])
        del raw[at : at + count]
        return f"{count} bytes cut at {at}"
    new = rng.randbytes(rng.choice([1, 1, 2, 4, 8]))
    if what == "insert":
        raw[at:at] = new
    else:
        raw[at : at + len(new)] = new
    return f"{what} {new.hex()} at {at}"


Field = tuple[str, int, str]
"""Something in a header: what it is, its offset, its code for ``struct`` ("s" for a string with its length)."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def _gguf_fields(raw: bytearray) -> list[Field]:
    """The fields of an honest header."""
    fields: list[Field] = [("magic", 0, "I"), ("version", 4, "I"), ("tensors", 8, "Q"), ("entries", 16, "Q")]
    tensors, entries = struct.unpack_from("<QQ", raw, 8)
    at = 24

    def number(name: str, code: str) -> int:
        nonlocal at
        fields.append((name, at, code))
        (value,) = struct.unpack_from(f"<{code}", raw, at)
        at += struct.calcsize(code)
        return int(value) if code not in "fd" else 0

    def string(name: str) -> str:
        nonlocal at
        fields.append((name, at, "s"))
        length = number(f"length of {name}", "Q")
        at += length
        return raw[at - length : at].decode()

    for _ in range(entries):
        _entry(string("key"), number, string)
    for _ in range(tensors):
        name = string("tensor")
        for n in range(number(f"dimensions of {name}", "I")):
            number(f"dimension {n} of {name}", "Q")
        number(f"type of {name}", "I")
        number(f"offset of {name}", "Q")
    return fields


def _entry(key: str, number: Callable[[str, str], int], string: Callable[[str], str]) -> None:
    kind = number(f"type of {key}", "I")
    count = 1
    if kind == 9:
        kind, count = number(f"items of {key}", "I"), number(f"count of {key}", "Q")
    for _ in range(count):
        if kind == 8:
            string(key)
        else:
            number(key, _SCALARS[kind])
