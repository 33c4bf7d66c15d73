"""Which kernels are in use, and the reasons why not."""

import ctypes
import platform
import re
from pathlib import Path

import pytest

from penstock.kernels import native
from penstock.kernels.native import PACKED_NEED, PRODUCTS_NEED, explain

ALL = dict.fromkeys(PACKED_NEED, True)


def test_nothing_is_missing_where_all_are_in_use() -> None:
    assert explain("", openmp=True, features=ALL, machine="x86_64") == []


def test_without_kernels_the_reason_is_told_alone() -> None:
    assert explain("no compiler", openmp=False, features={}, machine="x86_64") == ["no compiler"]


@pytest.mark.parametrize("feature", PRODUCTS_NEED)
def test_a_processor_without_a_feature_of_the_products(feature: str) -> None:
    (reason,) = explain("", openmp=True, features=ALL | {feature: False}, machine="x86_64")
    assert reason == f"products of weights come from torch: this processor lacks {feature}"


def test_a_processor_without_what_packing_needs() -> None:
    (reason,) = explain("", openmp=True, features=dict.fromkeys(PRODUCTS_NEED, True), machine="x86_64")
    assert reason == "weights are not packed for products: this processor lacks avx512vbmi"


def test_another_processor_and_one_thread() -> None:
    assert explain("", openmp=False, features={}, machine="arm64") == [
        "products of weights come from torch: their kernels are for x86-64, this is arm64",
        "the kernels run on one thread: they were compiled without OpenMP",
    ]


@pytest.mark.skipif(native.COMPILED is None, reason="nothing was compiled")
def test_what_is_described_is_what_is_there() -> None:
    found = native.describe()
    assert found.compiler.split()[0] in ("gcc", "clang")
    assert found.attention
    assert found.products is (native.LIBRARY is not None) is set(PRODUCTS_NEED).issubset(found.features)
    assert found.packed is (native.PACKED is not None) is set(PACKED_NEED).issubset(found.features)
    assert bool(found.missing) is not (found.openmp and found.packed)


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="/proc/cpuinfo names others")
@pytest.mark.skipif(native.COMPILED is None, reason="nothing was compiled")
def test_features_are_those_of_the_system() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        flags = next(line for line in lines if line.startswith("flags")).split()
    known = {"avx2", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512vbmi", "avx512_vbmi2", "avx512_vnni"}
    assert set(native.describe().features) == {name.replace("_", "") for name in known.intersection(flags)}


def test_without_an_extension_describe_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda _: None)
    library, why_not = native.load()
    assert library is None
    assert why_not.startswith("nothing was compiled at installation: install again with GCC or Clang")


def test_an_extension_that_cannot_be_loaded_is_none_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: str) -> ctypes.CDLL:
        raise OSError("no libgomp.so.1")

    monkeypatch.setattr(native.importlib.util, "find_spec", lambda _: type("Spec", (), {"origin": "there.so"}))
    monkeypatch.setattr(native.ctypes, "CDLL", refuse)
    assert native.load() == (
        None,
        "what was compiled at installation cannot be loaded: no libgomp.so.1; install again",
    )


def test_every_function_says_what_it_takes_and_refuses() -> None:
    """The comment above each function that gets addresses has a line for whoever calls it."""
    sources = "".join(path.read_text() for path in sorted((Path(native.__file__).parent / "csrc").glob("*.c")))
    tables = (native._PRODUCTS, native._PRODUCTS_WITH_STATUS, native._PORTABLE, native._PORTABLE_WITH_RESULT)
    names = [name for table in tables for name, arguments in table.items() if ctypes.c_void_p in arguments]
    assert len(names) > 20
    for name in names:
        comment = re.search(rf"/\*((?:(?!\*/).)*)\*/\n(?:void|int|long) {name}\(", sources, re.DOTALL)
        assert comment, name
        assert re.search(r"Takes: .*any b|Takes: .*finite", comment[1], re.DOTALL), name
        assert re.search(r"[Rr]efuse", comment[1]), name
