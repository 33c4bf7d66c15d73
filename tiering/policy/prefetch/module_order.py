"""The order in which the modules of a model are used, and where on that way each running stream is (pure)."""

from collections.abc import Iterable, Mapping

from ...events import Stream


class Route:
    """``stops`` are modules, each with one block or several, in the order of use; after the last comes the first."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.places = {module: place for place, module in enumerate(dict.fromkeys(stops))}
        """The number of each stop."""
        self._at: dict[Stream, int] = {}

    @property
    def streams(self) -> Mapping[Stream, int]:
        """At which stop each running stream is; -1 before the first."""
        return self._at

    def begin(self, stream: Stream) -> None:
        """``stream`` enters the model's forward."""
        self._at[stream] = -1

    def reach(self, stream: Stream, module: str) -> None:
        """``stream`` uses a block of ``module`` now. Outside of a forward this says nothing of what comes next."""
        if stream in self._at:
            self._at[stream] = self.places[module]

    def end(self, stream: Stream) -> None:
        """``stream`` leaves the model's forward."""
        self._at.pop(stream, None)

    def ahead(self, modules: Iterable[str]) -> list[float]:
        """For each of ``modules`` the part of the whole way, above 0 and at most 1, until the first of the running
        streams comes to it, or to it again; where none runs, from the start."""
        places, count = self.places, len(self.places)
        starts = [at + 1 for at in self._at.values()] or [0]
        if len(starts) == 1:  # the common case, and asked for at every miss
            start = starts[0]
            return [((places[module] - start) % count + 1) / count for module in modules]
        return [(min((places[module] - start) % count for start in starts) + 1) / count for module in modules]
