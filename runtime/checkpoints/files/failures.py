"""Failures of libraries that read files: their exceptions, and panics of their Rust code."""

from ....tiering.errors import shorten

_LONGEST = 1000
"""Characters."""


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` says that a file could not be read, and not that the process is asked to stop."""
    # A panic of the tokenizers' Rust code is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """What ``error`` says, in one line that is not too long: libraries write pages."""
    return shorten(" ".join(str(error).split()) or type(error).__name__, _LONGEST)
