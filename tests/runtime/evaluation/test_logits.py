"""Logits a piece at a time, of many families, streamed or not; and a file of them."""

import os
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.evaluation import logits
from penstock.runtime.evaluation.logits import KeptLogits, in_pieces
from penstock.tiering.errors import EvaluationError, FlashFull
from tests.support.tiny_models import tiny_config

IDS = torch.randint(3, 320, (1, 23), generator=torch.Generator().manual_seed(1))


def built(name: str, **overrides: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(name, **overrides)).eval()


@torch.no_grad()
def pieces(model: torch.nn.Module, rows: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    in_pieces(model, IDS, rows, found.append)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3_text", "gpt_neox", "granitemoe", "qwen3_moe"])
def test_pieces_are_the_logits(name: str) -> None:
    extra = {"final_logit_softcapping": 2.0} if name == "gemma3_text" else {}
    model = built(name, **extra)
    with torch.no_grad():
        whole = model(IDS).logits[0, :-1]
    for rows, lengths in ((5, [5, 5, 5, 5, 2]), (22, [22]), (1000, [22])):
        found = pieces(model, rows)
        assert [len(piece) for piece in found] == lengths
        torch.testing.assert_close(torch.cat(found), whole)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits[0, :-1], whole), "the model is as it was"


def test_layers_run_once() -> None:
    model = built("llama")
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    pieces(model, 5)
    assert len(calls) == 1


def test_pieces_of_a_streamed_model(tiny_dense_folder: Path, store: Path) -> None:
    with penstock.load(tiny_dense_folder, store=store, host_memory="150KiB") as model:
        assert model.penstock.placement.streamed, "or nothing is tried"
        with torch.no_grad():
            whole = model(IDS).logits[0, :-1]
        before = model.penstock.stats()
        torch.testing.assert_close(torch.cat(pieces(model, 5)), whole)
        after = model.penstock.stats()
        assert (after.forwards - before.forwards, after.tokens - before.tokens) == (1, 23)
        with torch.no_grad():
            assert torch.equal(model(IDS).logits[0, :-1], whole)


def test_a_model_that_cannot_leave_out_logits() -> None:
    model = built("llama")
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    assert [len(piece) for piece in pieces(model, 5)] == [22]


def test_a_model_whose_layers_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    monkeypatch.setattr(type(model), "get_decoder", lambda _: torch.nn.Identity())
    with torch.no_grad():
        whole = model(IDS).logits[0, :-1]
    (found,) = pieces(model, 5)
    torch.testing.assert_close(found, whole)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = built("llama")
    with torch.no_grad():
        whole = model(IDS).logits

        def stop(piece: torch.Tensor) -> None:
            raise KeyError

        with pytest.raises(KeyError):
            in_pieces(model, IDS, 5, stop)
        assert torch.equal(model(IDS).logits, whole)
        assert not torch.equal(model(IDS.flip(1)).logits, whole)


# --- the file ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_bit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    given = torch.randn(12, 70).to(dtype)
    given[3, 4] = -torch.inf
    with KeptLogits(tmp_path / "new", 12) as kept:
        kept.append(given[:5])
        kept.append(given[5:].t().contiguous().t())
        for _ in range(2):
            kept.rewind()
            assert torch.equal(torch.cat([kept.read(2), kept.read(7), kept.read(3)]), given)


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    with KeptLogits(tmp_path, 1) as kept:
        kept.append(torch.zeros(1, 8))
        assert list(tmp_path.iterdir()) == [], "it has no name"
        assert stat.S_IMODE(os.fstat(kept._file.fileno()).st_mode) == 0o600


def test_a_drive_without_room(tmp_path: Path, small_drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KeptLogits(small_drive, 4096) as kept, pytest.raises(FlashFull, match=r"2\.00 MiB are needed.*fewer tokens"):
        kept.append(torch.zeros(1, 128))
    monkeypatch.setattr(logits.shutil, "disk_usage", lambda _: _Free)
    with KeptLogits(small_drive, 4096) as kept, pytest.raises(FlashFull, match="No space left"):
        kept.append(torch.zeros(4096, 128))


class _Free:
    free = 1 << 40


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EvaluationError, match=r"cannot be kept in .*file.*choose another store"):
        KeptLogits(tmp_path / "file", 1)
