"""The comparison of results sees what differs, and what is missing is told in one line."""

from pathlib import Path

import numpy as np
import pytest

from tests.emulated import __main__ as emulated
from tests.emulated.build import MACHINES, NotHere, build
from tests.emulated.compare import Result, compare, read

NUMBERS = np.array([1.0, -2.0, 0.5], np.float32)
OUTPUT = b"runs plain avx2\na b equal 3\n\x01\n\x02c near 3 0.25 0.5\n" + NUMBERS.tobytes()


def changed(number: int, by: float) -> list[Result]:
    _, results = read(OUTPUT)
    content = results[1].content.copy()
    content[number] += np.float32(by)
    return [results[0], Result("c", content, 0.25, 0.5)]


def test_results_are_read_as_they_are_written() -> None:
    runs, (exact, near) = read(OUTPUT)
    assert runs == ("plain", "avx2")
    assert (exact.name, exact.content.tolist()) == ("a b", [1, 10, 2])
    assert (near.name, near.content.tolist(), near.slack, near.share) == ("c", NUMBERS.tolist(), 0.25, 0.5)


def test_what_rounding_explains_is_no_difference() -> None:
    _, results = read(OUTPUT)
    assert compare(results, results) == compare(results, changed(0, 0.75)) == compare(results, changed(1, -1.25)) == []


@pytest.mark.parametrize(("number", "by"), [(0, 0.76), (1, -1.26), (2, 0.51), (0, np.inf), (1, np.nan)])
def test_more_than_rounding_is_told(number: int, by: float) -> None:
    (fault,) = compare(read(OUTPUT)[1], changed(number, by))
    assert fault.startswith("c: ")


def test_a_byte_and_a_missing_result_are_told() -> None:
    _, results = read(OUTPUT)
    _, others = read(OUTPUT.replace(b"\x02", b"\x03"))
    assert compare(results, others) == ["a b: 1 of 3 bytes differ"]
    assert compare(results, results[:1]) == ["it has other results"]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_what_is_not_installed_is_named_with_its_package(
    machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match=r"there is no .*gcc: install the package gcc.* \(Debian, Ubuntu\)"):
        build(machine, tmp_path)  # type: ignore[arg-type]
    assert emulated.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.soak
def test_emulated_processors_compute_what_this_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    status = emulated.main()
    said = capsys.readouterr()
    if status == 2:
        pytest.skip(said.err)
    assert status == 0, said.out
