"""Old faults that are put back on purpose are found."""

from pathlib import Path

import pytest

from .case import Case
from .mutations import MUTATIONS, Mutation
from .play import play

MANY = 400
"""Random cases within which an old fault is found."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C in a callback
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_case_finds_it(mutation: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.read(mutation.case)
    report = play(case, tmp_path / "as it is")
    assert not report.finding, f"{report.where}: {report.finding}"
    assert report.alike
    mutation.put_back(monkeypatch)
    try:
        with_fault = play(case, tmp_path / "with the fault")
    except KeyboardInterrupt:  # one that comes where nobody expects it
        return
    assert with_fault.finding or len(with_fault.refusals) > len(report.refusals)


@pytest.mark.soak
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_random_cases_find_it(mutation: Mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(MANY):
        case = Case.of(seed)
        with monkeypatch.context() as patch:
            mutation.put_back(patch)
            found = play(case, tmp_path / f"{seed} with the fault").finding
        if found and not play(case, tmp_path / f"{seed} as it is").finding:
            return
    pytest.fail(f"no case up to {MANY} finds it")
