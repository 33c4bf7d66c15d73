"""Texts on the command line: how much of one is tokenized, and in windows of which size."""

from pathlib import Path

from transformers import AutoTokenizer

from penstock.runtime.cli.text import encode, window_size

TINY = Path(__file__).parents[3] / "examples" / "tiny-moe"


def test_only_as_much_is_tokenized_as_is_needed():
    tokenizer, sizes = AutoTokenizer.from_pretrained(TINY), []

    def counting(text, **more):
        sizes.append(len(text))
        return tokenizer(text, **more)

    assert len(encode(counting, "word " * 100_000, 100)) == 100
    assert sizes == [800]
    assert len(encode(counting, "  " * 100_000, 3000)) == 3000, "and as much as that is"
    assert len(encode(counting, "word " * 10, 100)) < 100, "and no more than there is"


def test_windows():
    assert window_size(None, 1, 4096, "") == 512
    assert window_size(None, 1, 100, "") == 100
    assert window_size(None, 0, None, "") == 512
    assert window_size(64, 1, 100, "") == 64
