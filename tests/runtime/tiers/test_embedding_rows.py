"""Embeddings read by row: the rows asked for are right, damage is seen, memory is given back."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from penstock.runtime.packing.pack import pack
from penstock.runtime.tiers.embedding_rows import RowReader, row_readable
from penstock.tiering.errors import BundleCorrupt
from penstock.tiering.policy.placement.placement import row_cache_bytes
from penstock.tiering.store.bundle.manifest import Block
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import PAGE, BlockId
from tests.support.tiny_models import save_tiny


class Normalised(nn.Embedding):
    """Uses all rows, whatever is asked for."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(ids, self.weight / self.weight.norm())


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Embedding(32, 8, padding_idx=0), True),
        (Gemma3TextScaledWordEmbedding(32, 8, 0, embed_scale=3.0), True),
        (OPTLearnedPositionalEmbedding(32, 8), False),
        (Normalised(32, 8), False),
        (nn.Embedding(32, 8, max_norm=1.0), False),
        (nn.Linear(8, 32), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_lookups_are_read_by_row(module: nn.Module, expected: bool) -> None:
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    assert row_readable(module) is expected
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == before


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Block]:
    """A bundle with an embedding of 4000 rows, and the embedding's block."""
    folder = save_tiny("llama", tmp_path / "llama", vocab_size=4000)
    with pack(folder, store=tmp_path / "store", host_memory=1 << 26) as bundle:
        (block,) = (b for b in bundle.manifest.blocks if b.id == BlockId("dense", "model.embed_tokens"))
        return bundle.folder, block


def test_rows_are_those_of_the_whole_weight(packed: tuple[Path, Block]) -> None:
    folder, block = packed
    with Bundle.open(folder) as bundle:
        whole = bytearray(block.extent.length + 2 * PAGE)
        reader = RowReader(bundle, block)
        (spec,) = block.tensors
        ids = torch.tensor([[0, 3999, 17], [17, 18, 2048]])
        with reader.rows(ids) as weight:
            found = weight[ids].clone()
        assert reader.resident_bytes <= row_cache_bytes(block.extent.length)
        with reader.rows(torch.arange(4000)) as weight:
            assert torch.equal(found, weight[ids])
            whole[: spec.length] = weight.detach().numpy().tobytes()
        assert reader.resident_bytes == 0, "more than is kept was not given back"
        data = (folder / bundle.manifest.files[block.extent.file].name).read_bytes()
        start = block.extent.offset + spec.offset
        assert whole[: spec.length] == data[start : start + spec.length]
        reader.close()


def flip(folder: Path, bundle: Bundle, block: Block, at: int) -> None:
    path = folder / bundle.manifest.files[block.extent.file].name
    with path.open("r+b") as file:
        file.seek(block.extent.offset + at)
        byte = file.read(1)[0]
        file.seek(block.extent.offset + at)
        file.write(bytes([byte ^ 1]))


def test_damage_is_seen_at_loading_and_at_every_read(packed: tuple[Path, Block]) -> None:
    folder, block = packed
    at = 100 * PAGE + 7
    with Bundle.open(folder) as bundle:
        reader = RowReader(bundle, block)
        flip(folder, bundle, block, at)
        row = (at - block.tensors[0].offset) // (64 * 4)
        offset = block.extent.offset + 100 * PAGE
        with (
            pytest.raises(BundleCorrupt, match=rf"data-00000.bin.*embed_tokens.*offset {offset}"),
            reader.rows(torch.tensor([row])),
        ):
            raise AssertionError("computed on damaged rows")
        with reader.rows(torch.tensor([0])) as weight:
            assert torch.isfinite(weight[0]).all()
        with pytest.raises(BundleCorrupt, match=r"data-00000.bin.*embed_tokens"):
            RowReader(bundle, block)
