"""Every error is one line that can be shown."""

import pytest

from penstock.tiering.errors import BundleCorrupt, PenstockError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("one\n  two\r\nthree", "one two three"),
        ("a\ud800b", r"a\ud800b"),
        (ValueError("x\ny"), "x y"),
        ("a  b", "a  b"),
        ("", ""),
        ("x" * 5000 + "; fetch it again", "x" * 800 + " ... " + "x" * 784 + "; fetch it again"),
    ],
)
def test_it_is_one_line(given: object, said: str) -> None:
    for kind in (PenstockError, BundleCorrupt):
        assert str(kind(given)) == said
    str(PenstockError(given)).encode()
