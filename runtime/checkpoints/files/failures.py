"""What counts as a failure of a library that reads a file: its exceptions, and a panic of its Rust code."""

_LONGEST = 1000
"""Characters."""


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` says that a file could not be read, and not that the process is asked to stop."""
    # A panic of the tokenizers' Rust code is no Exception.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """What ``error`` says, in one line that is not too long: libraries write pages."""
    said = " ".join(str(error).split()) or type(error).__name__
    # What to do is at the end.
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST // 2]} ... {said[-_LONGEST // 2 :]}"
