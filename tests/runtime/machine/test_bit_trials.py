"""What was tried of numbers of rows is kept, holds for this machine only, and spares the next start the trial."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import penstock
from penstock.kernels.experts import experts
from penstock.kernels.products import row_parts as parts
from penstock.runtime.machine import bit_trials, cachefile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = dict(parts.BIT_TRIALS)
    parts.BIT_TRIALS.clear()
    yield tmp_path / "cache" / "penstock"
    parts.BIT_TRIALS.clear()
    parts.BIT_TRIALS.update(known)


def loaded() -> dict[str, bool]:
    found: dict[str, bool] = {}
    bit_trials.load(found)
    return found


def test_kept_and_found_again(cache: Path) -> None:
    assert loaded() == {}
    assert bit_trials.keep({}) is None
    path = bit_trials.keep({"57 rows": True, "58 rows": False})
    assert path is not None
    assert path.parent == cache
    assert path.stat().st_mode & 0o777 == 0o600
    assert bit_trials.keep({"57 rows": True}) is None
    assert bit_trials.keep({"59 rows": True}) == path
    assert loaded() == {"57 rows": True, "58 rows": False, "59 rows": True}
    known = {"57 rows": False}
    bit_trials.load(known)
    assert known["57 rows"] is False, "what this process has seen itself counts"


def test_of_many_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_trials, "MOST", 3)
    for number in range(5):
        bit_trials.keep({f"{number} rows": True})
    assert list(loaded()) == ["2 rows", "3 rows", "4 rows"]


def test_another_setting_of_the_library_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    bit_trials.keep({"57 rows": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert loaded() == {}
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert loaded() == {"57 rows": True}


@pytest.mark.parametrize("damage", ["", "{", '{"version": 2}', "[]"])
def test_a_damaged_file_counts_as_none(damage: str) -> None:
    path = bit_trials.keep({"57 rows": True})
    assert path is not None
    path.write_text(damage)
    assert loaded() == {}
    assert bit_trials.keep({"58 rows": True}) == path
    assert loaded() == {"58 rows": True}


def test_a_file_that_others_may_write_to_counts_as_none() -> None:
    path = bit_trials.keep({"57 rows": True})
    assert path is not None
    path.chmod(0o666)
    assert loaded() == {}


def test_one_of_another_machine_under_the_same_name_counts_as_none() -> None:
    path = bit_trials.keep({"57 rows": True})
    assert path is not None
    cachefile.write(path.name, json.dumps(json.loads(path.read_text()) | {"holds_for": "another"}))
    assert loaded() == {}


def test_the_second_start_tries_nothing(tiny_moe_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products = 0
    real = experts.compute_expert

    def counted(*args: object) -> torch.Tensor:
        nonlocal products
        products += 1
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "compute_expert", counted)
    ids = torch.randint(3, 300, (1, 120), generator=torch.Generator().manual_seed(1))
    needed, outs = [], []
    for _ in range(2):
        parts.BIT_TRIALS.clear()
        with penstock.load(tiny_moe_folder, store=store, host_memory="1GiB", dtype=torch.bfloat16) as model:
            products = 0
            with torch.no_grad():
                outs.append(model(ids).logits)
            needed.append(products)
        assert any(parts.BIT_TRIALS.values())
    assert needed[1] < needed[0]
    assert torch.equal(*outs)
