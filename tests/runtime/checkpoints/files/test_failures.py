"""What libraries say of their failures becomes one line, with its beginning and its end."""

from penstock.runtime.checkpoints.files.failures import is_failure, reason


class PanicException(BaseException):
    """As that of Rust code, by its name."""


def test_a_panic_is_a_failure_and_ctrl_c_is_none() -> None:
    assert is_failure(ValueError())
    assert is_failure(PanicException())
    assert not is_failure(KeyboardInterrupt())
    assert not is_failure(SystemExit())


def test_a_reason_is_one_line() -> None:
    assert reason(ValueError("one\n  two")) == "one two"
    assert reason(ValueError()) == "ValueError"
    said = reason(ValueError("what is wrong" + " x" * 10_000 + "\nwhat to do"))
    assert len(said) < 1100
    assert said.startswith("what is wrong")
    assert said.endswith("what to do")
