"""The order in which modules are used, and the position of each running stream in it (pure).

cycle.py beside this file decides which dense blocks to read ahead, planner/expectations.py which experts.
"""

from collections.abc import Iterable, Mapping

from ...events import Stream


class Route:
    """The cyclic order of ``stops``: modules with at least one block, in the order of use."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.places = {module: place for place, module in enumerate(dict.fromkeys(stops))}
        """The number of each stop, by module."""
        self._at: dict[Stream, int] = {}

    @property
    def streams(self) -> Mapping[Stream, int]:
        """The stop at which each running stream is. -1 stands for before the first."""
        return self._at

    def begin(self, stream: Stream) -> None:
        """``stream`` enters the model's forward."""
        self._at[stream] = -1

    def reach(self, stream: Stream, module: str) -> None:
        """``stream`` uses a block of ``module`` now. Outside of a forward this is ignored."""
        if stream in self._at:
            self._at[stream] = self.places[module]

    def end(self, stream: Stream) -> None:
        """``stream`` leaves the model's forward."""
        self._at.pop(stream, None)

    def ahead(self, modules: Iterable[str]) -> list[float]:
        """For each of ``modules``, how soon a running stream comes to it: a share of the whole way, in (0, 1].

        Without a running stream it is the share from the start.
        """
        places, count = self.places, len(self.places)
        starts = [at + 1 for at in self._at.values()] or [0]
        if len(starts) == 1:  # the common case, on the path of every miss
            start = starts[0]
            return [((places[module] - start) % count + 1) / count for module in modules]
        return [(min((places[module] - start) % count for start in starts) + 1) / count for module in modules]
