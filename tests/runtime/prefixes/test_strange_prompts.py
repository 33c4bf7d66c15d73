"""Stored prompts that the model would not have written are computed instead, with the bits of a cold run."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from penstock.kernels.products.row_parts import BIT_TRIALS
from penstock.runtime.loading.load import load
from penstock.runtime.loading.openings import prefixes as opening
from penstock.runtime.prefixes import prefix as prefix_module
from penstock.runtime.prefixes.finite import check_finite
from penstock.runtime.prefixes.prefill import prefill
from penstock.runtime.prefixes.prefix import Prefixes
from penstock.tiering.errors import PrefixDamaged, PrefixError, PromptTooLong
from penstock.tiering.prefix import header as headers
from penstock.tiering.prefix.header import Header
from penstock.tiering.prefix.roles import ITEM_BYTES, Role, StoredTensor
from penstock.tiering.store.prefixes import prefix_notes
from penstock.tiering.units import PAGE
from tests.support.prefixed_models import BLOCK, fresh, model_of, prefixes_of, saved, tokens
from tests.support.tiny_models import save_tiny

PROMPT = tokens(110)


def forged(folder: Path, change: Callable[[Header, bytearray], Header]) -> None:
    """Change the one prefix file below ``folder``; all its checksums are right."""
    (path,) = folder.rglob("*.kv")
    raw = bytearray(path.read_bytes())
    header = headers.parse(bytes(raw[: headers.length_of(raw[:PAGE], "f")]), "f")
    header = change(header, raw)
    sums = [xxhash.xxh3_64_hexdigest(raw[extent.offset : extent.end]) for extent in header.extents]
    raw[: header.start] = headers.dump(header.with_checksums(sums))
    path.write_bytes(raw)
    path.with_name(prefix_notes.INDEX).unlink()


def put_number(value: float, *, state: bool) -> Callable[[Header, bytearray], Header]:
    def change(header: Header, raw: bytearray) -> Header:
        extent = header.extents[-1] if state else header.blocks[1]
        raw[extent.offset : extent.offset + 4] = np.float32(value).tobytes()
        return header

    return change


def other_dtype(header: Header, raw: bytearray) -> Header:
    """As many bytes, as numbers of half the size."""
    parts = (replace(p, dtype="bfloat16", shape=(*p.shape[:-1], 2 * p.shape[-1])) for p in header.parts)
    return replace(header, parts=tuple(parts))


def other_heads(header: Header, raw: bytearray) -> Header:
    return replace(
        header, parts=tuple(replace(p, shape=(2 * p.shape[0], p.shape[1], p.shape[2] // 2)) for p in header.parts)
    )


def swapped(header: Header, raw: bytearray) -> Header:
    return replace(header, parts=(header.parts[1], header.parts[0], *header.parts[2:]))


def one_layer_less(header: Header, raw: bytearray) -> Header:
    """The tensors of two layers as those of the first alone, twice as large."""
    first = header.parts[:2]
    return replace(
        header, parts=tuple(replace(p, shape=(*p.shape[:-1], p.shape[-1] * len(header.parts) // 2)) for p in first)
    )


def is_cold(model: Any, prefixes: Prefixes) -> bool:
    """Whether nothing is restored, and what is computed has the bits of a cold run."""
    cache = fresh(model)
    restored = prefixes.restore(PROMPT, cache)
    logits = prefill(model, PROMPT, cache, block=BLOCK)
    return not restored and torch.equal(logits, prefill(model, PROMPT, fresh(model), block=BLOCK))


@pytest.mark.parametrize("change", [put_number(np.nan, state=False), put_number(np.inf, state=False), other_dtype,
                                    other_heads, one_layer_less, swapped])  # fmt: skip
def test_what_the_model_would_not_have_written_is_computed(tmp_path: Path, change: Any) -> None:
    model = model_of("llama")
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, PROMPT[:96])
    forged(tmp_path, change)
    with prefixes_of(model, tmp_path) as again:
        first = fresh(model)
        done = again.restore(PROMPT, first)
        assert done == (32 if getattr(change, "__name__", "") == "change" else 0)  # what lies before the damage is good
        logits = prefill(model, PROMPT, first, block=BLOCK)
        assert torch.equal(logits, prefill(model, PROMPT, fresh(model), block=BLOCK))
        saved(model, again, PROMPT[:96])
        assert again.restore(PROMPT, fresh(model)) == 96


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_next"])
def test_a_state_with_numbers_that_are_not_finite_is_computed(tmp_path: Path, name: str) -> None:
    model = model_of(name)
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, PROMPT[:96])
    forged(tmp_path, put_number(np.nan, state=True))
    with prefixes_of(model, tmp_path) as again:
        assert is_cold(model, again)


def test_a_window_with_fewer_tokens_than_the_layer_keeps_is_computed(tmp_path: Path) -> None:
    model = model_of("gemma3_text")
    with prefixes_of(model, tmp_path) as prefixes:
        saved(model, prefixes, PROMPT[:96])

    def shorter(header: Header, raw: bytearray) -> Header:
        parts = (replace(p, shape=(*p.shape[:2], p.shape[2] - 1, p.shape[3])) for p in header.state_parts)
        return replace(header, state_parts=tuple(parts))

    forged(tmp_path, shorter)
    with prefixes_of(model, tmp_path) as again:
        assert is_cold(model, again)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_numbers_that_are_not_finite_are_found_wherever_they_are(dtype: str) -> None:
    own = getattr(torch, dtype)
    count = 300_000 // own.itemsize
    part = StoredTensor(Role(0, "keys"), dtype, (1, count, 1))
    largest = torch.finfo(own).max
    for at in (0, count // 2, count - 1):
        for value, wrong in ((largest, False), (-largest, False), (0.0, False), (np.nan, True), (np.inf, True)):
            if value == np.inf and dtype == "float8_e4m3fn":  # it has none
                continue
            numbers = torch.zeros(count, dtype=own)
            numbers[at] = torch.tensor(value, dtype=own)
            raw = memoryview(numbers.view(torch.uint8).numpy())
            if wrong:
                with pytest.raises(PrefixDamaged, match=r"0\.keys"):
                    check_finite(raw, part)
            else:
                check_finite(raw, part)


def test_what_is_not_finite_is_not_stored_either(tmp_path: Path) -> None:
    model = model_of("llama")
    with prefixes_of(model, tmp_path) as prefixes:
        cache = fresh(model)
        prefill(model, PROMPT[:96], cache, block=BLOCK)
        cache.layers[1].keys[0, 0, 40] = torch.inf
        with pytest.raises(PrefixError, match=r"1\.keys"):
            prefixes.save(PROMPT[:96], cache)
        assert not list(tmp_path.rglob("*.kv"))


def test_prompts_beyond_the_positions_are_left_alone(tmp_path: Path) -> None:
    model = model_of("llama")
    most = model.config.max_position_embeddings
    long = tokens(most + 1)
    with prefixes_of(model, tmp_path) as prefixes:
        cache = fresh(model)
        prefill(model, long, cache, block=BLOCK)
        for _ in range(2):
            prefixes.offer(long, cache)
            prefixes.flush()
        assert prefixes.find_stop(long) == prefixes.restore(long, fresh(model)) == 0
        with pytest.raises(PromptTooLong, match=rf"has {most + 1} tokens, but m has {most} positions"):
            prefixes.save(long, cache)
        assert not list(tmp_path.rglob("*.kv"))


@pytest.mark.parametrize("token", [-5, 1 << 32])
def test_tokens_that_are_none_are_left_to_the_model(tmp_path: Path, token: int) -> None:
    model = model_of("llama")
    with prefixes_of(model, tmp_path) as prefixes:
        prompt = [token, *PROMPT]
        assert prefixes.restore(prompt, fresh(model)) == prefixes.find_stop(prompt) == 0
        prefixes.offer(prompt, fresh(model))
        assert prefixes.stats().problem == ""


def test_a_full_drive_is_named_in_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere/.seen.0123.tmp")

    monkeypatch.setattr(prefix_notes, "append", full)
    model = model_of("llama")
    with prefixes_of(model, tmp_path) as prefixes:
        prefixes.offer(PROMPT, fresh(model))
        prefixes.flush()
        problem = prefixes.stats().problem
    assert problem.startswith(f"the drive of {prefixes.store.folder} is full, so prompts are not stored; make room")


# --- with a model of ours ---


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[int], Any]]:
    """Loads a tiny model with stored prompts, generates, and gives the text and the statistics."""
    monkeypatch.setattr(opening, "LEAST", BLOCK)
    monkeypatch.setattr(prefix_module, "worth_reading", lambda *_, **__: True)
    folder = save_tiny("llama", tmp_path / "checkpoint")

    def run(**options: Any) -> tuple[list[int], Any]:
        with load(folder, store=tmp_path / "store", host_memory="64MiB", kv_prefix="100MiB", **options) as model:
            out = model.generate(torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False)
            if model.penstock.prefixes is not None:
                model.penstock.prefixes.flush()
            return out[0].tolist(), model.penstock.stats()

    return run


@pytest.mark.parametrize("options", [{}, {"kv_host_memory": "4MiB"}])
def test_a_store_from_elsewhere_is_believed_after_two_tokens(
    generated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    generated(**options)
    text, _ = generated(**options)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    BIT_TRIALS.clear()
    again, stats = generated(**options)
    assert (again, stats.prefix_hits) == (text, 1)
    forged(tmp_path, other_heads)
    BIT_TRIALS.clear()
    again, stats = generated(**options)
    assert (again, stats.prefix_hits) == (text, 0)
    assert "not this model's" in stats.prefix_problem


@pytest.mark.parametrize("what", ["lock", "folder"])
def test_a_store_that_fails_is_one_that_has_nothing(generated: Any, tmp_path: Path, what: str) -> None:
    text, _ = generated()
    folder = tmp_path / "store" / "prefix"
    if what == "lock":
        (folder / "store.lock").unlink()
        os.mkfifo(folder / "store.lock")
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    again, stats = generated()
    assert (again, stats.prefix_hits) == (text, 0)
    assert str(folder) in stats.prefix_problem
    assert "Errno" not in stats.prefix_problem
