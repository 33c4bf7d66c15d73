"""The weights of a loaded model, as its modules find them: blocks, pinned slots, embeddings read by row."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...tiering.events import Slot
from ...tiering.store.bundle.manifest import Block
from ...tiering.units import BlockId
from .compute_tier import ComputeTier
from .embedding_rows import RowReader
from .kept_copies import KeptCopies


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """Every block of the model has its slot in ``pinned``, or is leased from ``tier``, or is read by row."""

    tier: ComputeTier
    blocks: Mapping[BlockId, Block]
    """In the order of the bundle."""
    tied: Mapping[str, str]
    """Names of tensors that are stored under another name."""
    pinned: Mapping[BlockId, Slot]
    """Slots that stay until the model is closed."""
    rows: Mapping[BlockId, RowReader]
    """Readers of embeddings that are read by row."""
    elastic: frozenset[BlockId]
    """Blocks that are leased, although they mostly stay in memory."""
    copies: KeptCopies
    """Counts weights that were changed, and are kept in memory beside the others."""
