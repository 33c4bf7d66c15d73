"""Signals pass where an error may rise, and wait where Penstock is between two states."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType
from typing import Any

import pytest

from penstock.kernels.process import interrupts
from penstock.kernels.process.interrupts import SHIELD, calls_others, may_be_interrupted, may_pass


def of(module: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as if it stood in ``module``."""
    names = {"__name__": module, "__builtins__": __builtins__, "signal": signal, "_thread": _thread, "time": time}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


@pytest.fixture
def unmarked() -> Iterator[None]:
    """What is marked here is forgotten."""
    before = {*interrupts._waiting}, {*interrupts._calling}
    yield
    interrupts._waiting.intersection_update(before[0])
    interrupts._calling.intersection_update(before[1])


def stack(*modules: str, mark: Callable[[Any], Any] | None = None) -> bool:
    """Whether a signal may pass in the last of functions that call each other; the first one is marked."""
    import sys

    look = of(modules[-1], lambda: may_pass(sys._getframe(0)))
    look.__globals__.update(may_pass=may_pass, sys=sys)

    def wrap(module: str, inner: Callable[[], bool]) -> Callable[[], bool]:
        return of(module, lambda: inner())

    for module in reversed(modules[:-1]):
        look = wrap(module, look)
    if mark is not None:
        mark(look)
    return bool(look())


@pytest.mark.usefixtures("unmarked")
def test_where_an_error_may_rise() -> None:
    assert stack("user")
    assert stack("user", "torch.nn", "threading")
    assert not stack("user", "penstock.runtime.tiers.bridge")
    assert not stack("penstock.runtime.tiers.bridge", "threading")
    assert not stack("penstock.runtime.tiers.views", "torch.nn.parameter"), (
        "what called it is in the middle of something"
    )


@pytest.mark.usefixtures("unmarked")
def test_marked_functions() -> None:
    assert stack("penstock.runtime.modules.a", "torch.nn", mark=calls_others)
    assert stack("penstock.runtime.modules.b", "penstock.kernels.products.few_rows", mark=calls_others)


@pytest.mark.usefixtures("unmarked")
def test_a_marked_function_is_shielded_itself() -> None:
    assert not stack("penstock.runtime.modules.c", mark=calls_others)


@pytest.mark.usefixtures("unmarked")
def test_a_function_that_waits() -> None:
    assert stack("penstock.runtime.tiers.d", "threading", mark=may_be_interrupted)


def raising(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(number)


@pytest.fixture
def alarm() -> Iterator[None]:
    """A handler of SIGALRM that raises."""
    before = signal.signal(signal.SIGALRM, raising)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGALRM, TimeoutError)])
@pytest.mark.usefixtures("alarm")
def test_what_is_held_back_comes_at_the_end(number: int, error: type[BaseException]) -> None:
    went_on = []

    def work() -> None:
        signal.raise_signal(number)
        went_on.append(True)

    hidden = of("penstock.runtime.tiers.bridge", work)
    with pytest.raises(error), SHIELD:
        hidden()
    assert went_on == [True]
    assert not SHIELD.on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is raising


def test_what_is_held_back_comes_as_soon_as_it_may() -> None:
    reached = []

    def wait() -> None:
        until = time.monotonic() + 20.0
        while time.monotonic() < until:
            pass

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append(True)

    with SHIELD:
        of("penstock.runtime.tiers.bridge", work)()
        with pytest.raises(KeyboardInterrupt):
            wait()  # code of others, which no Penstock called
    assert reached == [True]


def test_it_is_sent_once_until_its_handler_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would rise after the call that the first has ended."""
    sent: list[int] = []
    looks: list[int] = []
    looked = _thread.allocate_lock()
    send = _thread.interrupt_main
    monkeypatch.setattr(interrupts._thread, "interrupt_main", lambda number: (sent.append(int(number)), send(number)))

    def sleep(seconds: float) -> None:
        looks.append(len(sent))
        if len(looks) == 5:
            looked.release()

    monkeypatch.setattr(interrupts.time, "sleep", sleep)

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        looked.acquire()

    looked.acquire()
    with pytest.raises(KeyboardInterrupt), SHIELD:
        of("penstock.runtime.tiers.bridge", work)()
    assert looks[1:5] == [1, 1, 1, 1]


@pytest.mark.usefixtures("alarm")
def test_all_that_is_held_back_comes() -> None:
    def work() -> None:
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises((KeyboardInterrupt, TimeoutError)) as raised, SHIELD:
        of("penstock.runtime.tiers.bridge", work)()
    assert {type(raised.value), type(raised.value.__context__)} == {KeyboardInterrupt, TimeoutError}


def test_it_may_be_nested_and_is_nothing_in_another_thread() -> None:
    with SHIELD:
        with SHIELD:
            assert SHIELD.on
        assert SHIELD.on
        seen: list[Any] = []

        def work() -> None:
            with SHIELD:
                seen.append(SHIELD.on)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [True]
        assert SHIELD.on, "the other thread has taken it down"
    assert not SHIELD.on


def test_an_interrupt_while_it_is_put_up_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("_signal.getsignal", lambda number: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), SHIELD:
            pass
    with SHIELD:
        assert SHIELD.on
    assert not SHIELD.on


def test_a_handler_set_inside_stays() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with SHIELD:
            signal.signal(signal.SIGUSR1, raising)
        assert signal.getsignal(signal.SIGUSR1) is raising
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_a_child_it_holds_nothing_back() -> None:
    with SHIELD:
        child = os.fork()
        if not child:
            code = 1
            try:
                with SHIELD:
                    code = 0 if SHIELD.on and SHIELD.main == _thread.get_ident() else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
