"""The fuzzer of kernels: it says what is missing, sees a damaged kernel, and finds nothing in some seconds."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.sanitize import fuzz
from tests.sanitize.build import NoSanitizer


def has_libfuzzer() -> bool:
    given = ["clang", "-fsanitize=fuzzer,address,undefined", "-x", "c", "-", "-o", "/dev/null"]
    empty = "int LLVMFuzzerTestOneInput(const char *data, long size) { return 0; }"
    try:
        return subprocess.run(given, input=empty, text=True, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_clang = pytest.mark.skipif(not has_libfuzzer(), reason="there is no Clang with libFuzzer and sanitizers")


def run(name: str, seconds: int, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status = fuzz.main([str(seconds), "--targets", name, "--folder", str(folder)])
    said = capfd.readouterr().err
    assert status == 0, said[-4000:]
    ran = re.search(r"number_of_executed_units: (\d+)", said)
    assert ran is not None
    assert int(ran[1]) > 100


def test_without_clang_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLANG", "no-such-clang")
    with pytest.raises(NoSanitizer, match=r"no-such-clang.*install Clang"):
        fuzz.build_targets(tmp_path, ["lossless"])
    assert fuzz.main(["--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@needs_clang
def test_some_seconds_of_lossless_find_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("lossless", 5, tmp_path, capfd)


@needs_clang
@pytest.mark.soak
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_minutes_find_nothing(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(name, 120, tmp_path, capfd)
