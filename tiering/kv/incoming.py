"""Pages that come from flash (pure): the reads under way, and the pages that were read ahead."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from ..errors import PenstockError, ReadError
from .pages import Page


class Incoming:
    """Pages that are "coming" or "read", in the order in which their reads began."""

    def __init__(self) -> None:
        self.reads: dict[int, Sequence[Page]] = {}
        """Reads under way, by number."""
        self.problems: dict[Page, Exception] = {}
        """The error of each page that could not be read."""
        self._pages: dict[Page, None] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages)

    def begin(self, pages: Sequence[Page]) -> int:
        """Begin a read of ``pages``. Returns its number."""
        number = self._count
        self._count += 1
        self.reads[number] = pages
        for page in pages:
            self._pages[page] = None
        return number

    def end(self, read: int, error: Exception | None) -> Sequence[Page]:
        """End read number ``read``, which failed if there is an ``error``. Returns its pages."""
        pages = self.reads.pop(read)
        if error is not None:
            for page in pages:
                self.problems[page] = error
        return pages

    def forget(self, pages: Iterable[Page]) -> None:
        """Forget ``pages``: they were fetched, given up or dropped."""
        for page in pages:
            del self._pages[page]
            if self.problems:
                self.problems.pop(page, None)

    def last_unasked(self) -> Page | None:
        """Return the page that has been read, has no request waiting, and is needed last. None if there is none."""
        return next((page for page in reversed(self._pages) if page.memory == "read" and not page.leases), None)

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError if the books do not agree with ``pages``, all pages that there are."""
        assert {*self._pages} == {page for page in pages if page.memory in ("coming", "read")}
        coming = [page for run in self.reads.values() for page in run]
        assert len(coming) == len({*coming}), "two reads fill one slot"
        assert {*coming} == {page for page in pages if page.memory == "coming"}
        assert self.problems.keys() <= {page for page in pages if page.memory == "read"}


def unreadable(problem: Exception) -> PenstockError:
    """Return the error for pages that could not be read because of ``problem``."""
    if isinstance(problem, PenstockError):
        return problem
    error = ReadError(
        f"KV pages cannot be read back from flash ({problem}); nothing was computed on them. Try it "
        "again; if it stays so, see to the drive that [store] path is on"
    )
    error.__cause__ = problem
    return error
