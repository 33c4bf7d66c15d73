"""Neighbouring extents into reads (pure): the result is the I/O plan, the driver runs it."""

from collections.abc import Generator, Iterable, Sequence

from .units import BlockId, Extent


def coalesce(
    wanted: Iterable[tuple[BlockId, Extent]], *, limit: int
) -> Generator[Sequence[tuple[BlockId, Extent]], None, None]:
    """Group ``wanted``, in the order given, into runs that lie end to end in one file.

    A run holds at most ``limit`` bytes, except that a single extent is never split. Lazy: looks one extent ahead.
    """
    run: list[tuple[BlockId, Extent]] = []
    length = 0
    for block, extent in wanted:
        if run:
            last = run[-1][1]
            if last.file != extent.file or last.end != extent.offset or length + extent.length > limit:
                yield run
                run, length = [], 0
        run.append((block, extent))
        length += extent.length
    if run:
        yield run
