"""What tests of bench/ share: a script is run in this process, since each start of torch takes seconds."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
TINY = BENCH.parent / "examples" / "tiny-moe"

Run = Callable[..., str]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all runs share, so that the model is packed once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def own_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is measured of this machine stays in a folder of the tests; products are computed by one thread."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script of bench/ with these arguments; what it printed. Any other end than success is an error."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(BENCH / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise AssertionError(f"{name} ended with {end.code}") from end
        return capsys.readouterr().out

    return run
