"""Asynchronous reads through io_uring: one ring, and one thread that submits reads and collects them."""

import errno
import os
import select
import threading
from pathlib import Path
from typing import Any, NamedTuple

from ..memory.page import PAGE
from ..waiting import Then, deliver, mark_thread, may_wait
from .directio import DirectFile, Segment, Transfer
from .iovecs import Iovecs
from .reading import BackendUnavailable, QueuedReader

_WHY = {
    errno.EPERM: "the kernel or a sandbox forbids it (see sysctl kernel.io_uring_disabled)",
    errno.EACCES: "a sandbox forbids it",
    errno.ENOSYS: "the kernel has none, or a sandbox hides it",
    errno.ENOMEM: "there is not enough memory that may be locked (see ulimit -l)",
    errno.EMFILE: "too many files are open (see ulimit -n)",
}
_AGAIN = (errno.EINTR, errno.EAGAIN)
_RETRY_MS, _LOOK_MS = 5, 100


class _Flight(NamedTuple):
    """A read with a piece in the kernel."""

    transfer: Transfer
    then: Then
    vector: Any  # liburing's list of buffers, which the kernel may use until the piece is done


class Uring(QueuedReader):
    """A reader with up to ``depth`` reads in the kernel at a time. It must be closed. See Reader.

    The reader's own thread submits everything, because the kernel ends a thread's reads with the thread, and callers
    come and go. liburing's calls do not let other Python threads run, so no call here can wait. An eventfd announces
    completions and submitted reads.

    Buffers are not registered. With megabyte reads into huge pages that gains nothing, and registered pages would no
    longer be the process's own once their arena returns memory to the system.
    """

    def __init__(self, depth: int, enough: int | None = None) -> None:
        """Raises BackendUnavailable where io_uring is forbidden or the liburing package is absent."""
        super().__init__(enough)
        self._api = _liburing()
        self._vector = Iovecs(self._api)
        self._ring, self._depth = self._api.Ring(), depth
        self._flights: dict[int, _Flight] = {}
        self._next = 0
        self._stuck = self._gone = False
        try:
            self._api.io_uring_queue_init(1 << (depth - 1).bit_length(), self._ring)
        except OSError as error:
            raise _unavailable(error) from error
        self._signal = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self._api.io_uring_register_eventfd(self._ring, self._signal)
        except OSError as error:
            self._api.io_uring_queue_exit(self._ring)
            os.close(self._signal)
            raise _unavailable(error) from error
        self._thread = threading.Thread(target=self._run, name="penstock-io-ring", daemon=True)
        self._thread.start()

    def leave_to_parent(self) -> None:
        """As Inherited.leave_to_parent. The ring is the parent's, and nothing here touches it."""
        super().leave_to_parent()
        self._gone = True

    def _wake(self) -> None:
        os.eventfd_write(self._signal, 1)

    def close(self) -> None:
        """Close the reader, as Reader.close."""
        with self._lock:
            self._closed = True
            if not self._gone:
                self._wake()
        if may_wait():
            self._thread.join()

    def _run(self) -> None:
        mark_thread()
        poll = select.poll()
        poll.register(self._signal, select.POLLIN)
        while not self._gone:
            # With reads in the kernel it also polls now and then: a lost signal must not delay them.
            if poll.poll(_RETRY_MS if self._stuck else _LOOK_MS if self._flights else None):
                os.eventfd_read(self._signal)
            self._turn()

    def _turn(self) -> None:
        """Collect landed reads, submit waiting ones, and end if none are left."""
        with self._lock:
            landed = self._reap()
            for transfer, _, _ in landed:
                self._ended(transfer)
            landed += self._issue()
        for transfer, then, problem in landed:
            transfer.end()
            deliver(then, problem)
        with self._lock:
            if self._closed and not self._flights and not self._waiting:
                self._gone = True
                self._api.io_uring_queue_exit(self._ring)
                os.close(self._signal)

    # --- on the thread, under the lock -------------------------------------------------------------------------------

    def _issue(self) -> list[tuple[Transfer, Then, Exception | None]]:
        """Submit waiting reads as far as the depth allows. Returns those that need no kernel, as landed."""
        empty: list[tuple[Transfer, Then, Exception | None]] = []
        while len(self._flights) < self._depth and (taken := self._take()) is not None:
            if taken[0].left:
                self._prepare(*taken)
            else:
                empty.append((*taken, None))
        self._enter()
        return empty

    def _prepare(self, transfer: Transfer, then: Then) -> None:
        """Queue the next piece of ``transfer`` for the kernel."""
        buffers, offset = transfer.rest()
        number, self._next = self._next, self._next + 1
        flight = self._flights[number] = _Flight(transfer, then, self._vector(buffers))
        # There is room: the ring has as many entries as there are flights, and each has at most one piece in it.
        entry = self._api.io_uring_get_sqe(self._ring)
        self._api.io_uring_prep_readv(entry, transfer.file.descriptor, flight.vector, offset, 0)
        entry.user_data = number

    def _enter(self) -> None:
        """Submit the queued pieces. If the kernel has no room for them now, it is asked again soon."""
        self._stuck = False
        while self._api.io_uring_sq_ready(self._ring):
            try:
                self._stuck = not self._api.io_uring_submit(self._ring)
            except InterruptedError:
                continue
            except OSError:
                # Queued pieces cannot be withdrawn, and the kernel may still take them, so they must be completed.
                self._stuck = True
            if self._stuck:
                return

    def _reap(self) -> list[tuple[Transfer, Then, Exception | None]]:
        """Return the finished reads. For the others, queue the next piece."""
        landed: list[tuple[Transfer, Then, Exception | None]] = []
        completion = self._api.Cqe()
        while self._api.io_uring_cq_ready(self._ring):
            self._api.io_uring_peek_cqe(self._ring, completion)
            entry = completion[0]
            transfer, then, _ = self._flights.pop(entry.user_data)
            problem: Exception | None = None
            try:
                transfer.took(take_result(entry))
            except OSError as error:
                if error.errno not in _AGAIN:
                    problem = transfer.explain(error)
            self._api.io_uring_cqe_seen(self._ring, entry)
            if transfer.left and problem is None:
                self._prepare(transfer, then)
            else:
                landed.append((transfer, then, problem))
        return landed


def take_result(entry: Any) -> int:
    """Return the bytes that a completed piece has read. Raises OSError as preadv would."""
    return int(entry.res)


def probe() -> str:
    """Set up a ring and read with it. Returns the version of liburing. Raises BackendUnavailable with the reason."""
    reader = Uring(1)
    try:
        _read_trial(reader)
    finally:
        reader.close()
    return str(_liburing().__version__)


def _read_trial(reader: Uring) -> None:
    outcome: list[Exception | None] = []
    done = threading.Event()

    def then(problem: Exception | None) -> None:
        outcome.append(problem)
        done.set()

    content, into = os.urandom(PAGE), bytearray(PAGE)
    descriptor = os.memfd_create("penstock-trial", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        with DirectFile(Path(f"/proc/self/fd/{descriptor}"), direct=False) as file:
            reader.submit(file, [Segment(0, memoryview(into))], then)
            done.wait()
    finally:
        os.close(descriptor)
    if outcome[0] is not None:
        raise BackendUnavailable(f"a trial read with io_uring failed: {outcome[0]}") from outcome[0]
    if into != content:
        raise BackendUnavailable("a trial read with io_uring brought wrong bytes")


def _unavailable(error: OSError) -> BackendUnavailable:
    why = _WHY.get(error.errno or 0, error.strerror or str(error))
    return BackendUnavailable(f"io_uring cannot be used here: {why}")


def _liburing() -> Any:
    """Import the binding when it is first needed, because it is an extra."""
    try:
        import liburing
    except ImportError as error:
        raise BackendUnavailable(
            f"io_uring needs the liburing package ({error}): pip install 'penstock[uring]'"
        ) from error
    return liburing
