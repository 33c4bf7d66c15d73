"""Opening checkpoints: what is there is found, and what is wrong is said."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from penstock.runtime.checkpoints.checkpoint import Checkpoint
from penstock.runtime.checkpoints.files.safetensors_file import parse_header
from penstock.runtime.checkpoints.files.source_file import SourceFile
from penstock.tiering.errors import CheckpointError
from tests.support.bundles import assert_equal, packed
from tests.support.tiny_models import save_tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "checkpoint")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "checkpoint", max_shard_size="100KB")


def write_header(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_tensors_of_a_file_are_where_it_says(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.tensor(1.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    found = parse_header(path)
    assert found.keys() == tensors.keys()
    file = SourceFile(path)
    for name, tensor in tensors.items():
        source = found[name]
        assert (source.dtype, source.shape) == (tensor.dtype, tuple(tensor.shape))
        buffer = bytearray(source.length)
        file.read(source.offset, memoryview(buffer))
        assert bytes(buffer) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    file.close()


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 16), "b": entry(8, 24)}, 24, "b overlaps"),
        ({"a": entry(0, 8), "b": entry(16, 24)}, 24, "b leaves a gap"),
        ({"a": entry(8, 16)}, 16, "a leaves a gap"),
        ({"a": entry(0, 1 << 40, [1 << 38])}, 24, "truncated"),
        ({"a": entry(0, 16)}, 24, "belong to no tensor"),
        ({"a": entry(0, 16)}, 8, "truncated"),
        ({"a": entry(0, 16, [5])}, 16, "a is wrong"),
        ({"a": entry(0, 16, [-4])}, 16, "a is wrong"),
        ({"a": entry(0, 16, [True])}, 16, "a is wrong"),
        ({"a": entry(16, 0, [4])}, 16, "a is wrong"),
        ({"a": {"dtype": "F32", "shape": [4]}}, 16, "a is wrong"),
        ({"a": [1, 2]}, 16, "a is wrong"),
        ({"a": entry(0, 16, dtype="Q4")}, 16, "dtype 'Q4'"),
        ({"a": entry(0, 16, dtype=["F32"])}, 16, "dtype"),  # type: ignore[arg-type]
        ([1, 2], 0, "not a JSON object"),
        (b"{not json", 0, "not JSON"),
        (b"\xff\xfe{}", 0, "not JSON"),
        (b'{"a":1,"a":2}', 0, "twice"),
        (b"[" * 100_000, 0, "not JSON"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, data: int, says: str, tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(CheckpointError, match=says) as caught:
        parse_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [1, 1000, 200_000_000, 1 << 62, (1 << 64) - 1])
def test_a_header_length_that_lies_is_refused(length: int, tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", {"a": entry(0, 16)}, bytes(16), length=length)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        parse_header(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(content)
    try:
        parse_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            parse_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match="ends at 100"):
        SourceFile(path).read(50, memoryview(bytearray(51)))


def test_shards_are_one_checkpoint(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    assert len(checkpoint.files) > 1
    assert {tensor.file for tensor in checkpoint.tensors.values()} == set(checkpoint.files)
    assert "model.embed_tokens.weight" in checkpoint.tensors
    assert checkpoint.config.model_type == "llama"


def test_dtype_is_the_configured_one_or_that_of_the_weights(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    assert opened.dtype() == torch.float32
    opened.config.dtype = torch.bfloat16
    assert opened.dtype() == torch.bfloat16
    config = json.loads((checkpoint / "config.json").read_text())
    del config["dtype"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    save_file({"ids": torch.ones(2, dtype=torch.int64), "w": torch.ones(2).half()}, checkpoint / "model.safetensors")
    assert Checkpoint.open(checkpoint).dtype() == torch.float16


def refused(source: str | Path, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.open(source)


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder .*nowhere")
    refused(str(tmp_path / "nowhere"), "there is no folder .*nowhere")
    refused("../a/b/c", "there is no folder")


def test_not_a_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    refused(tmp_path, "not a checkpoint: it has no config.json")
    refused(checkpoint / "model.safetensors", "is a file")
    (checkpoint / "model.safetensors").rename(checkpoint / "other.safetensors")
    refused(checkpoint, "no model.safetensors; other.safetensors is there")
    (checkpoint / "other.safetensors").unlink()
    refused(checkpoint, "not a checkpoint: it has no model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_only(name: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(b"never read")
    refused(checkpoint, f"pickle .{name}")


def test_an_adapter_is_no_model(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    refused(checkpoint, "is an adapter")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model_type": "no-such-type"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_is_none(content: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(content)
    refused(checkpoint, "config.json cannot be used")


def test_quantised_weights(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(checkpoint, "quantised as .bitsandbytes., which penstock does not read")


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')\n")
    refused(checkpoint, "trust_remote_code")
    assert not (checkpoint / "ran").exists()


def test_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(sharded, f"lacks {shard.name}")


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(sharded, f"{shard.name} is truncated or damaged")


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.safetensors", "a/../../b.safetensors"])
def test_an_index_that_points_elsewhere(name: str, sharded: Path) -> None:
    change_index(sharded, {"stray": name})
    refused(sharded, "outside of its folder")


def test_an_index_that_names_absent_tensors(sharded: Path, tmp_path: Path) -> None:
    """Nobody misses them, unless the model needs them."""
    change_index(sharded, {"mtp.fc.weight": next(sharded.glob("*.safetensors")).name})
    with packed(sharded, tmp_path / "store") as bundle:
        assert_equal(bundle, sharded)
    shard = next(path for path in sharded.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    tensors = load_file(shard)
    del tensors["model.norm.weight"]
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"lacks model\.norm\.weight, which the model needs"):
        packed(sharded, tmp_path / "store")


def test_of_two_shards_with_one_tensor_the_later_one_counts_as_in_transformers(sharded: Path, tmp_path: Path) -> None:
    first, *_, last = sorted(sharded.glob("*.safetensors"))
    name = next(iter(load_file(first)))
    save_file(load_file(last) | {name: load_file(first)[name] + 1}, last, {"format": "pt"})
    with packed(sharded, tmp_path / "store") as bundle:
        assert_equal(bundle, sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_nothing(name: str, checkpoint: Path) -> None:
    (checkpoint / name).rename(checkpoint / "gone")
    (checkpoint / name).symlink_to("blobs/abc")
    refused(checkpoint, f"{name} is a link to blobs/abc, which is not there")


def test_a_shard_that_is_a_link_to_nothing(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    shard.symlink_to("../../blobs/abc")
    refused(sharded, f"{shard.name} is a link to ../../blobs/abc")


def test_other_kinds_of_numbers_are_parsed(tmp_path: Path) -> None:
    path = write_header(
        tmp_path / "x.safetensors",
        {
            "scales": {"dtype": "F8_E8M0", "shape": [2, 2], "data_offsets": [0, 4]},
            "pairs": {"dtype": "F4", "shape": [2, 6], "data_offsets": [4, 10]},
        },
        bytes(10),
    )
    found = parse_header(path)
    assert (found["scales"].dtype, found["scales"].shape) == (torch.float8_e8m0fnu, (2, 2))
    assert (found["pairs"].dtype, found["pairs"].shape) == (torch.float4_e2m1fn_x2, (2, 3))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(content: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, "index.json (is damaged|cannot be used)")


def change_index(folder: Path, more: dict[str, str]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= more
    path.write_text(json.dumps(index))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(name: str, **_: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr("penstock.runtime.checkpoints.files.hub.can_reach_hub", lambda: True)
    refused("someone/model", "no folder someone/model.*no network")
    monkeypatch.setattr("penstock.runtime.checkpoints.files.hub.can_reach_hub", lambda: False)
    refused("someone/model", "no folder someone/model.*it cannot be reached, and nothing of that name")
