"""Small contexts must have eager's bits with [kv] host. Only what is too much for that may have other sums."""

from pathlib import Path

import pytest
import torch

import penstock
from penstock.runtime.kv.attention import attention
from penstock.tiering.units import parse_size
from tests.support.tiny_models import save_tiny

from .by_pages import noting_pages
from .settings import BOUNDED


@pytest.mark.parametrize(("tokens", "rows", "noted"), [(30, 2, False), (70, 1, False), (200, 1, True), (70, 4, True)])
def test_what_goes_by_pages_is_noted(tokens: int, rows: int, noted: bool, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    options = {"store": tmp_path / "store", "attn_implementation": "eager", "kv_host_memory": BOUNDED}
    with (
        noting_pages(int(parse_size(BOUNDED))) as by_pages,
        penstock.load(folder, host_memory="64MiB", **options) as model,
    ):
        model.generate(torch.ones(rows, tokens, dtype=torch.long), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert by_pages.seen == noted


def test_a_small_context_by_pages_is_no_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_count_eager_bytes", lambda *_: 1 << 40)
    folder = save_tiny("llama", tmp_path / "model")
    options = {"store": tmp_path / "store", "attn_implementation": "eager", "kv_host_memory": BOUNDED}
    with (
        noting_pages(int(parse_size(BOUNDED))) as by_pages,
        penstock.load(folder, host_memory="64MiB", **options) as model,
    ):
        model.generate(torch.ones(1, 9, dtype=torch.long), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert not by_pages.seen
