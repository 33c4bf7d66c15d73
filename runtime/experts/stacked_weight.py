"""The numbers of a stacked weight of experts, which lie in flash one expert after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.errors import UnplaceableModule
from ...tiering.units import BlockId, format_size
from ..tiers.stored_weight import ChangeableNumbers
from .tier_experts import ExpertMemory, TierExperts


class StackedNumbers(ChangeableNumbers):
    """Numbers [experts, ...] of one parameter of an experts module."""

    def __init__(
        self,
        name: str,
        place: int,
        blocks: Sequence[BlockId],
        experts: TierExperts,
        memory: ExpertMemory,
        bare: torch.Tensor,
    ) -> None:
        """Those of the parameter ``name``: of each of ``experts``, in ``blocks`` by number, the tensor number
        ``place``. ``bare`` as for ChangeableNumbers."""
        super().__init__(name, memory.tier, memory.copies, bare)
        self._place, self._blocks, self._experts = place, blocks, experts

    @contextmanager
    def leased(self, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """See ChangeableNumbers. They are put together for as long as the context lasts."""
        self._tier.bridge.check_open()
        chosen = range(len(self._blocks)) if rows is None else sorted({*rows.tolist()} & {*range(len(self._blocks))})
        size = self.weight.nbytes // max(1, len(self._blocks)) * len(chosen)
        with self._copies.room(size) as fits:
            if not fits and len(chosen) > 1:
                raise self._copies.refuse(
                    UnplaceableModule(
                        f"{self.name} is used as a whole, for which its experts, streamed one by one, need "
                        f"{format_size(size)} together; raise {self._tier.budget}, or load the model with transformers"
                    )
                )
            whole = torch.empty(tuple(self.weight.shape), dtype=self.weight.dtype, device=self.weight.device)
            for expert in chosen:  # memory that is not written to takes none
                tensors, leased = self._experts.lease_one(self._blocks[expert])
                tensor = tensors[self._place]
                whole[expert] = tensor.decoded() if isinstance(tensor, PackedWeight) else tensor
                self._experts.bridge.release(*leased)
            yield whole
