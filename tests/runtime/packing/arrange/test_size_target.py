"""fit:SIZE from end to end: bundles that fit, are the better the larger, and say what they hold."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import penstock
from penstock.kernels.formats.lossless import Lossless
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.checkpoints.describe import describe
from penstock.runtime.checkpoints.meta_model import build_meta_model
from penstock.runtime.checkpoints.weights import SourceFormat
from penstock.runtime.cli.main import main
from penstock.runtime.config.settings import Weights
from penstock.runtime.packing.arrange.arrange import estimate
from penstock.runtime.packing.arrange.formats import Rules
from penstock.runtime.packing.pack import pack
from penstock.runtime.packing.rules import named_rules
from penstock.runtime.routing.routes import Routes
from penstock.tiering.errors import ConfigError
from penstock.tiering.store.bundle.manifest import TensorSpec
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.units import PAGE, MiB
from tests.support.tiny_models import save_tiny, tiny_config

TINY = Path(__file__).parents[4] / "examples/tiny-moe"
IDS = torch.randint(3, 300, (1, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "qwen3_moe", tmp_path_factory.mktemp("moe"), torch.bfloat16, hidden_size=128, moe_intermediate_size=96
    )


def fitted(folder: Path, store: Path, size: int, routes: Routes | None = None) -> Bundle:
    return pack(folder, store=store, host_memory=32 * MiB, rules=Rules(f"fit:{size}"), routes=routes)


def uniform(folder: Path, store: Path, name: str) -> int:
    """Bytes of the bundle in one format."""
    with pack(folder, store=store, host_memory=32 * MiB, rules=Rules(name)) as bundle:
        return bundle.manifest.total_bytes


def least(folder: Path, store: Path) -> int:
    with pytest.raises(ConfigError, match=r"write fit:\d+ or more") as caught:
        fitted(folder, store, PAGE)
    found = re.search(r"write fit:(\d+)", str(caught.value))
    assert found is not None
    return int(found[1])


def test_a_bundle_fits_and_uses_the_size(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    smallest = least(folder, store)
    with pytest.raises(ConfigError, match=f"write fit:{smallest} or more"):
        fitted(folder, store, smallest - 1)
    int8, lossless = (uniform(folder, store, name) for name in ("int8", "lossless"))
    wanted, errors = [], []
    with penstock.load(folder, store=store, attn_implementation="eager") as original:
        wanted = original(IDS).logits.float()
    for size in (smallest, (smallest + int8) // 2, int8, (int8 + lossless) // 2, lossless):
        bundle = fitted(folder, store, size)
        assert size - 8 * PAGE < bundle.manifest.total_bytes <= size
        assert bundle.verify() == []
        with penstock.load(bundle.folder, attn_implementation="eager", host_memory="64MB") as model:
            errors.append((model(IDS).logits.float() - wanted).norm().item())
            assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 27)
        bundle.close()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[-2] < errors[0] / 3, "with room for all bits, every bit is kept"


def test_what_has_room_for_every_bit_takes_no_more_than_these_need(folder: Path, tmp_path: Path) -> None:
    lossless = uniform(folder, tmp_path, "lossless")
    with fitted(folder, tmp_path, 100 * MiB) as bundle:
        found = {spec.packing and spec.packing.format for block in bundle.manifest.blocks for spec in block.tensors}
        assert found == {None, "lossless"}
        assert bundle.manifest.total_bytes <= lossless


def test_exact_matrices_are_encoded_only_where_int8_fits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then measured once, to find out their lengths, however many are taken."""
    encoded: list[int] = []
    for name in ("find_lengths", "encode"):
        method = getattr(Lossless, name)
        monkeypatch.setattr(Lossless, name, lambda *given, method=method: encoded.append(1) or method(*given))
    int8 = uniform(folder, tmp_path, "int8")
    fitted(folder, tmp_path, int8 - PAGE).close()
    assert encoded == []
    with fitted(folder, tmp_path, int8 + 30 * PAGE) as bundle:
        specs = [spec for block in bundle.manifest.blocks for spec in block.tensors]
        written = [spec for spec in specs if spec.packing and spec.packing.format == "lossless"]
        assert 0 < len(written) < len(encoded)
        whole = pack(folder, store=tmp_path, host_memory=32 * MiB, rules=Rules("int8")).manifest
        matrices = [spec for block in whole.blocks for spec in block.tensors if spec.packing]
        assert len(encoded) == len(matrices) + len(written)


def test_an_exact_matrix_is_of_the_dtype_that_can_be(folder: Path, tmp_path: Path) -> None:
    """Of others, lossless has none, and in a plan neither."""
    config = tiny_config("qwen3_moe", hidden_size=128, moe_intermediate_size=96)
    model = build_meta_model(config, torch.float32)
    plan = describe(model)
    assert estimate(model, plan, Rules(f"fit:{2 * plan.total_bytes}"), {}).total_bytes == plan.total_bytes
    half = build_meta_model(config, torch.bfloat16)
    assert estimate(half, describe(half), Rules("fit:1GB"), {}).total_bytes < 0.75 * describe(half).total_bytes
    with pack(folder, store=tmp_path, host_memory=32 * MiB, dtype=torch.float32, rules=Rules("fit:1GB")) as bundle:
        assert not any(spec.packing for block in bundle.manifest.blocks for spec in block.tensors)
        assert bundle.manifest.notes == ()


def test_parts_with_a_format_of_their_own_keep_it(folder: Path, tmp_path: Path) -> None:
    rules = Rules(f"fit:{MiB}", attention="int8", output="as-is")
    with pack(folder, store=tmp_path, host_memory=32 * MiB, rules=rules) as bundle:
        assert bundle.manifest.total_bytes <= MiB
        stored = {spec.name: spec.packing for block in bundle.manifest.blocks for spec in block.tensors}
    packing = stored["model.layers.0.self_attn.q_proj.weight"]
    assert packing is not None
    assert packing.format == "int8"
    assert stored["lm_head.weight"] is None
    assert str(rules) == f"fit:{MiB},attention=int8,output=as-is"
    assert str(Rules("fit:1MiB")) == str(Rules(f"fit:{MiB}"))


def test_a_plan_knows_the_size_before_anything_is_packed() -> None:
    model = build_meta_model(tiny_config("qwen3_moe", hidden_size=128, moe_intermediate_size=96), torch.bfloat16)
    plan = describe(model)
    for size in (600_000, 900_000):
        assert size - 8 * PAGE < estimate(model, plan, Rules(f"fit:{size}"), {}).total_bytes <= size
    with pytest.raises(ConfigError, match=r"write fit:\d+ or more"):
        estimate(model, plan, Rules("fit:4KiB"), {})


def test_what_comes_quantised_stays_so_where_there_is_room() -> None:
    """No other format has fewer bytes without a loss; as numbers, the matrices would take twice as much."""
    model = build_meta_model(tiny_config("qwen3_moe", hidden_size=128, moe_intermediate_size=96), torch.bfloat16)
    plan = describe(model)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = estimate(model, plan, Rules("fit:1GB"), {name: SourceFormat("mxfp4")})
    packings = [spec.packing for block in found.blocks for spec in block.tensors if spec.name == name]
    assert [packing and packing.format for packing in packings] == ["mxfp4"] * 8
    assert found.total_bytes < plan.total_bytes


def test_a_text_makes_another_bundle_which_is_taken_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny("qwen3_moe", tmp_path / "moe", torch.bfloat16, vocab_size=4096, tie_word_embeddings=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("the water comes from high above, and falls, and falls. " * 40)
    other.write_text("a wheel turns in the valley below; nobody looks at it. " * 40)
    store = tmp_path / "store"
    base = [str(folder), "--store", str(store), "--json", "--weights-format"]

    def packed(format_: str, *more: str) -> str:
        assert main(["pack", *base, format_, *more]) == 0
        return str(json.loads(capsys.readouterr().out)["bundle"])

    plain = packed("fit:500KB")
    first = packed("fit:500KB", "--text", str(text))
    assert packed("fit:500KB", "--text", str(text)) == first
    assert packed("fit:500000") == first, "without a text, the one that was made with one"
    assert len({plain, first, packed("fit:500KB", "--text", str(other))}) == 3
    # Other numbers, not only another folder.
    apart = [packed("int8"), packed("int8", "--text", str(text))]
    assert len({(Path(bundle) / "data-00000.bin").read_bytes() for bundle in apart}) == 2
    assert main(["pack", *base, "as-is", "--text", str(text)]) == 1
    assert "every bit is kept" in capsys.readouterr().err
    text.write_text("short")
    assert main(["pack", *base, "int8", "--text", str(text)]) == 1
    assert "name a longer text" in capsys.readouterr().err


def test_inspect_says_how_much_is_in_which_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = fitted(folder, tmp_path, least(folder, tmp_path) + 15 * PAGE)
    matrices: dict[tuple[str, int | None], list[TensorSpec]] = {}
    for block in bundle.manifest.blocks:
        for spec in block.tensors:
            matrices.setdefault((spec.name, block.id.expert), []).append(spec)
    bundle.close()
    assert main(["inspect", str(bundle.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(row["matrices"] for row in found["formats"]) == len(matrices)
    assert sum(row["bytes"] for row in found["formats"]) == sum(
        spec.length for specs in matrices.values() for spec in specs
    )
    for row in found["formats"]:
        assert row["format"] == "as-is" or 1 <= row["planes"] <= FORMATS[row["format"]].planes
        assert row["bits_per_weight"] <= 16
    assert len(found["formats"]) > 2
    assert main(["inspect", str(bundle.folder)]) == 0
    shown = capsys.readouterr().out
    assert "bits per weight" in shown
    assert "stacked" in shown


@pytest.mark.parametrize("wrong", ["fit:", "fit:much", "fit:-1GB", "fit:0", "fit:1e400", "fit:auto"])
def test_a_size_that_is_none_is_said(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"fit:3\.2GiB"):
        penstock.Config().override(weights_format=wrong)


def test_only_the_whole_bundle_has_a_size() -> None:
    assert named_rules(Weights(format="fit:2GiB")) == (Rules("fit:2GiB"),)
    with pytest.raises(ConfigError, match="only format can have one"):
        penstock.Config().override(weights_experts="fit:2GiB")
