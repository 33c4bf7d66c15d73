"""The parameters of a module, some of which are stored in the bundle, as everybody sees them."""

from collections.abc import Mapping
from typing import Any

from .streamed_weight import StreamedWeight


class StoredParameters(dict[str, Any]):
    """Takes the place of a module's ``_parameters``, and notes when a stored one gets another value."""

    def __init__(self, parameters: Mapping[str, Any], stored: Mapping[str, StreamedWeight]) -> None:
        """``stored`` are those of ``parameters`` that lie in the bundle."""
        super().__init__({**parameters, **stored})
        self.stored = dict(stored)

    def note_change(self) -> None:
        """Called when a stored parameter was replaced, removed or put back."""
        raise NotImplementedError

    def is_stored(self, name: str) -> bool:
        """Whether ``name`` is still the weight from the bundle."""
        return self.get(name) is self.stored[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, StreamedWeight) and value is self.stored.get(name):  # put back after it was away
            present = value.numbers.present()
            value = value if present is None else present
        super().__setitem__(name, value)
        self._note(name)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._note(name)

    def pop(self, name: str, *default: Any) -> Any:
        """As dict's."""
        found = super().pop(name, *default)
        self._note(name)
        return found

    def __reduce_ex__(self, protocol: object) -> Any:
        """A pickle holds the parameters with their numbers, and nothing of the model."""
        return dict, ({**self},)

    def _note(self, name: str) -> None:
        if name in self.stored:
            self.note_change()
