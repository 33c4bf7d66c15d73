"""The manifest: what is written is read back, and nothing else is taken for one."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tiering.errors import BundleCorrupt, BundleVersionError
from penstock.tiering.store.bundle.manifest import (
    ENCODED,
    TENSOR_ALIGNMENT,
    Block,
    BundleDrive,
    DataFile,
    Manifest,
    Packing,
    TensorSpec,
    dump,
    encode,
    place_tensors,
    signed,
)
from penstock.tiering.store.bundle.manifest_check import NUMBER_BYTES
from penstock.tiering.store.bundle.manifest_file import parse
from penstock.tiering.units import PAGE, BlockId, Extent

names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
checksums = st.text("0123456789abcdef", min_size=16, max_size=16)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
dtypes = st.sampled_from(sorted(NUMBER_BYTES))
entries = st.tuples(names, dtypes, shapes).map(lambda entry: (*entry, prod(entry[2]) * NUMBER_BYTES[entry[1]]))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    blocks, lengths = [], [0] * draw(st.integers(1, 3))
    modules = draw(st.lists(names, unique=True, min_size=len(lengths), max_size=6))
    for number, module in enumerate(modules):
        file = min(number, len(lengths) - 1)
        tensors, length = place_tensors(draw(st.lists(entries, max_size=3, unique_by=lambda entry: entry[0])))
        extent = Extent(file, lengths[file], max(PAGE, length))
        kind = draw(st.sampled_from(["dense", "expert"]))
        blocks.append(Block(BlockId(kind, module, number), extent, draw(checksums), tensors, draw(st.booleans())))
        lengths[file] = extent.end
    drives = tuple(
        BundleDrive(f"/d{n}/b.0123456789abcdef" if n else "", n + 7) for n in range(draw(st.sampled_from([0, 2, 3])))
    )
    on = [draw(st.integers(0, max(0, len(drives) - 1))) for _ in lengths]
    files = tuple(DataFile(f"data-{n:05}.bin", length, on[n]) for n, length in enumerate(lengths))
    tied = draw(st.dictionaries(names, names, max_size=2))
    notes = tuple(draw(st.lists(names, max_size=2)))
    return Manifest(draw(names), draw(names), "bfloat16", "as-is", tied, files, tuple(blocks), drives, notes)


def matrix(plane: int, length: int = 64, offset: int = 0, **other: Any) -> TensorSpec:
    """A plane of the expert's matrix."""
    packing = Packing("stacked", plane, transposed=True, address=24)
    return replace(TensorSpec("e.v", "bfloat16", (8, 8), offset, length, packing), **other)


EXPERT = BlockId("expert", "e", 1)
MANIFEST = Manifest(
    identity="i",
    checkpoint="c",
    dtype="float32",
    codec="as-is",
    tied={"b": "a"},
    files=(DataFile("data-00000.bin", 3 * PAGE),),
    blocks=(
        Block(
            BlockId("dense", "m"), Extent(0, 0, PAGE), "0" * 16, (TensorSpec("m.a", "float32", (2, 3), 0, 24),), True
        ),
        Block(EXPERT, Extent(0, PAGE, 2 * PAGE), "1" * 16, (TensorSpec("e.w", "int8", (5000,), 0, 5000),)),
    ),
)
ENCODED_ONE = replace(
    MANIFEST,
    files=(DataFile("data-00000.bin", 5 * PAGE),),
    blocks=(
        MANIFEST.blocks[0],
        Block(EXPERT, Extent(0, PAGE, PAGE), "1" * 16, (matrix(0),)),
        Block(EXPERT.residual(1), Extent(0, 2 * PAGE, PAGE), "2" * 16, (matrix(1),)),
        Block(EXPERT.residual(2), Extent(0, 3 * PAGE, PAGE), "3" * 16, (matrix(2),)),
        Block(BlockId("dense", "n"), Extent(0, 4 * PAGE, PAGE), "4" * 16, (TensorSpec("n.a", "int8", (2,), 0, 2),)),
    ),
)
"""Its expert has a matrix in three planes."""


@given(manifests())
def test_what_is_dumped_is_parsed(manifest: Manifest) -> None:
    assert parse(dump(manifest), "here") == manifest
    assert dump(parse(dump(manifest), "here")) == dump(manifest)


STRIPED = replace(
    MANIFEST,
    files=(DataFile("data-00000.bin", PAGE, 1), DataFile("data-00001.bin", 2 * PAGE, 0)),
    blocks=(MANIFEST.blocks[0], replace(MANIFEST.blocks[1], extent=Extent(1, 0, 2 * PAGE))),
    drives=(BundleDrive("", 2), BundleDrive("/s/b.0123456789abcdef", 1)),
)


def test_an_encoded_matrix_is_one_that_older_versions_refuse() -> None:
    document = json.loads(dump(ENCODED_ONE))
    assert document["version"] == 3
    assert document["blocks"][2]["tensors"] == [["e.v", "bfloat16", [8, 8], 0, 64, ["stacked", 1, True, 24]]]
    assert parse(dump(ENCODED_ONE), "here") == ENCODED_ONE


def test_a_plain_bundle_is_one_that_older_versions_read() -> None:
    document = json.loads(dump(MANIFEST))
    assert document["version"] == 1
    assert "drives" not in document
    assert document["files"] == [{"name": "data-00000.bin", "length": 3 * PAGE}]
    assert json.loads(dump(STRIPED))["version"] == 2


def test_drives_have_places_and_bytes(tmp_path: Path) -> None:
    assert STRIPED.places(tmp_path) == [tmp_path, Path("/s/b.0123456789abcdef")]
    assert STRIPED.drive_bytes == (2 * PAGE, PAGE)
    assert STRIPED.drive_of(STRIPED.blocks[0]) == 1
    assert (MANIFEST.places(tmp_path), MANIFEST.drive_bytes) == ([tmp_path], (3 * PAGE,))


PART = "b.0123456789abcdef"


@pytest.mark.parametrize(
    "drives",
    [
        [],
        [""],
        [f"/s/{PART}", f"/t/{PART}"],
        ["", PART],
        ["", "/etc"],
        ["", f"/s/../etc/{PART}"],
        ["", f"/s//{PART}"],
        ["", f"/s\0/{PART}"],
    ],
)
def test_drives_that_cannot_be_are_refused(drives: list[str]) -> None:
    document = json.loads(dump(STRIPED)) | {"drives": [{"folder": f, "bytes_per_second": 1} for f in drives]}
    with pytest.raises(BundleCorrupt, match="drive"):
        parse(encode(signed(document)), "here")


def test_total_bytes_are_those_of_the_files() -> None:
    assert MANIFEST.total_bytes == 3 * PAGE


@given(st.lists(entries, max_size=8))
def test_tensors_are_placed_aligned_and_apart(tensors: list[tuple[str, str, tuple[int, ...], int]]) -> None:
    specs, length = place_tensors(tensors)
    assert length % PAGE == 0
    end = 0
    for spec, (name, dtype, shape, size) in zip(specs, tensors, strict=True):
        assert (spec.name, spec.dtype, spec.shape, spec.length) == (name, dtype, shape, size)
        assert spec.offset % TENSOR_ALIGNMENT == 0
        assert end <= spec.offset < end + TENSOR_ALIGNMENT
        end = spec.offset + size
    assert end <= length < end + PAGE


def test_a_newer_version_says_so() -> None:
    document = json.loads(dump(MANIFEST)) | {"version": ENCODED + 1}
    for text in (json.dumps(document), json.dumps(document, indent=1), encode(document)):
        with pytest.raises(BundleVersionError, match=f"here has bundle version {ENCODED + 1}.*upgrade penstock"):
            parse(text, "here")


GONE: Any = object()


def changed(manifest: Manifest, path: Sequence[Any], value: Any) -> str:
    """The text of ``manifest`` with another value, signed again, so that only the change itself is wrong."""
    document = json.loads(dump(manifest))
    at = document
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return encode(signed(document))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["version"], None),
        (["version"], True),
        (["identity"], 7),
        (["identity"], GONE),
        (["codec"], "as\0is"),
        (["tied"], []),
        (["tied"], {"b": 1}),
        (["more"], 1),
        (["files"], 7),
        (["files"], []),
        (["files", 0, "length"], "x"),
        (["files", 0, "length"], 2 * PAGE),
        (["files", 0, "length"], 4 * PAGE),
        (["files", 0, "length"], float(3 * PAGE)),
        (["files", 0, "length"], float("nan")),
        (["files", 0, "length"], -1),
        (["files", 0, "length"], 1 << 80),
        (["files", 0, "name"], ""),
        (["files", 0, "name"], ".."),
        (["files", 0, "name"], "../data-00000.bin"),
        (["files", 0, "name"], "data-00000.bin\0"),
        (["files", 0, "name"], "data-00000.bin\n"),
        (["files", 0, "drive"], 0.0),
        (["files", 0, "more"], 0),
        (["blocks"], [1]),
        (["blocks", 0, "id"], ["dense", "m"]),
        (["blocks", 0, "id"], ["other", "m", 0]),
        (["blocks", 0, "id"], ["residual", "m", 0]),
        (["blocks", 0, "id"], ["dense", "m", -1]),
        (["blocks", 0, "id"], ["dense", "m", False]),
        (["blocks", 0, "id"], ["dense", "\0", 0]),
        (["blocks", 1, "id"], ["dense", "m", 0]),
        (["blocks", 0, "extent"], [1, 0, PAGE]),
        (["blocks", 0, "extent"], [-1, 0, PAGE]),
        (["blocks", 0, "extent"], [0, 0, 0]),
        (["blocks", 0, "extent"], [0, 0, PAGE + 1]),
        (["blocks", 0, "extent"], [0, 512, PAGE]),
        (["blocks", 0, "extent"], [0, 0, 2 * PAGE]),
        (["blocks", 0, "extent"], [0, -PAGE, PAGE]),
        (["blocks", 1, "extent"], [0, 0, 2 * PAGE]),
        (["blocks", 1, "extent"], [0, 2 * PAGE, PAGE]),
        (["blocks", 0, "checksum"], "0"),
        (["blocks", 0, "resident"], 1),
        (["blocks", 0, "tensors", 0, 0], "m\0"),
        (["blocks", 0, "tensors", 0, 1], "float31"),
        (["blocks", 0, "tensors", 0, 1], "float64"),
        (["blocks", 0, "tensors", 0, 2], [2, 4]),
        (["blocks", 0, "tensors", 0, 2], [-2, -3]),
        (["blocks", 0, "tensors", 0, 2], [1 << 40, 1 << 40]),
        (["blocks", 0, "tensors", 0, 2], [1] * 14 + [2, 3, 1]),
        (["blocks", 0, "tensors", 0, 3], -1),
        (["blocks", 0, "tensors", 0, 3], 64),
        (["blocks", 0, "tensors", 0, 3], 2),
        (["blocks", 0, "tensors", 0, 4], PAGE + 1),
        (["blocks", 0, "tensors", 0, 4], 0),
        (["blocks", 0, "tensors"], [["m.a", "float32", [2, 3], 0, 24], ["m.a", "float32", [2, 3], 64, 24]]),
        (["blocks", 0, "tensors"], [["m.a", "float32", [2, 3], 0, 24], ["m.b", "float32", [2, 3], 0, 24]]),
        (["blocks", 0, "tensors"], [["m.a", "float32", [2, 3], 0, 24, []]]),
        (["blocks", 0, "tensors"], [["m.a", "float32", [6], 0, 24, ["int8", 0, False, 0]]]),
    ],
)
def test_a_damaged_manifest_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(BundleCorrupt, match=r"here is damaged .*pack again"):
        parse(changed(MANIFEST, path, value), "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["blocks", 1, "tensors", 0, 5, 1], 1),
        (["blocks", 1, "tensors", 0, 5, 1], -1),
        (["blocks", 1, "tensors", 0, 5, 2], 1),
        (["blocks", 1, "tensors", 0, 5, 3], 64),
        (["blocks", 1, "tensors", 0, 4], 0),
        (["blocks", 2, "tensors", 0, 5, 1], 0),
        (["blocks", 2, "tensors", 0, 5, 1], 2),
        (["blocks", 2, "tensors", 0, 5, 1], 9),
        (["blocks", 2, "tensors", 0, 5, 0], "nested"),
        (["blocks", 2, "tensors", 0, 5, 2], False),
        (["blocks", 2, "tensors", 0, 5, 3], 8),
        (["blocks", 2, "tensors", 0, 0], "e.w"),
        (["blocks", 2, "tensors", 0, 1], "float32"),
        (["blocks", 2, "tensors", 0, 2], [4, 16]),
        (["blocks", 2, "id"], ["residual", "e", 5]),
        (["blocks", 2, "id"], ["residual", "e", 0]),
        (["blocks", 2, "id"], ["residual", "f", 4]),
        (["blocks", 2, "id"], ["expert", "e", 2]),
        (["blocks", 2, "resident"], True),
        (["blocks", 4, "id"], ["residual", "e", 7]),
    ],
)
def test_planes_that_do_not_follow_each_other_are_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(BundleCorrupt, match=r"here is damaged .*pack again"):
        parse(changed(ENCODED_ONE, path, value), "here")


def test_deep_and_large_numbers_are_refused() -> None:
    text = dump(MANIFEST)
    for value in ("[" * 100_000 + "]" * 100_000, "9" * 10_000, "1e400", "NaN"):
        unsigned = text[: text.rindex(',"checksum"')].replace('"resident":true', f'"resident":{value}') + "}"
        whole = f'{unsigned[:-1]},"checksum":"{hashlib.sha256(unsigned.encode()).hexdigest()}"}}'
        with pytest.raises(BundleCorrupt, match="here is damaged"):
            parse(whole, "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', dump(MANIFEST)[:-1], dump(MANIFEST)[:100]])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BundleCorrupt, match="here is damaged"):
        parse(text, "here")


@given(st.data())
def test_a_flipped_bit_is_seen(data: st.DataObject) -> None:
    raw = bytearray(dump(MANIFEST).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    with pytest.raises((BundleCorrupt, BundleVersionError), match="here"):
        parse(raw.decode(), "here")
