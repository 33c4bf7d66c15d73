"""The tokens of a layer that the queries of one forward see: in pages, and the newest as they were computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .selector import AttendedLayer
from .sequence import SequencePages

Expand = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Makes keys and values of what is cached, token by token (multi-head latent attention)."""


@dataclass(slots=True)
class Visible:
    """What the queries of one forward see of ``layer``: ``paged`` tokens in the pages of ``sequences``, from number
    ``start`` on, and behind these the ``new`` ones, keys and values [B, H, n, D]; None: they are in the pages."""

    layer: AttendedLayer
    sequences: list[SequencePages]
    start: int
    paged: int
    new: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def length(self) -> int:
        """Tokens."""
        return self.paged + (0 if self.new is None else self.new[0].shape[-2])

    def gather(self, expand: Expand | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all tokens, [B, H, T, D]; after ``expand``, if it is given. Raises what PageAccess.gather
        raises."""
        batch = [self.layer.access.gather(sequence, self.start, self.paged) for sequence in self.sequences]
        keys, values = (torch.stack([pair[side] for pair in batch]) for side in (0, 1))
        if self.new is not None:
            keys, values = torch.cat([keys, self.new[0]], -2), torch.cat([values, self.new[1]], -2)
        return (keys, values) if expand is None else expand(keys, values)
