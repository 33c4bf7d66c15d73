"""fit:SIZE from end to end: bundles that fit, are the better the larger, and say what they hold."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.runtime.cli.main import main
from penstock.runtime.formats import Rules
from penstock.runtime.pack import pack
from penstock.runtime.routes import Routes
from penstock.tiering.errors import ConfigError
from penstock.tiering.store.manifest import TensorSpec
from penstock.tiering.store.reader import Bundle
from penstock.tiering.units import PAGE, MiB
from tests.tiny_models import save_tiny

TINY = Path(__file__).parents[2] / "examples/tiny-moe"
IDS = torch.randint(3, 300, (1, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "qwen3_moe", tmp_path_factory.mktemp("moe"), torch.bfloat16, hidden_size=128, moe_intermediate_size=96
    )


def fitted(folder: Path, store: Path, size: int, routes: Routes | None = None) -> Bundle:
    return pack(folder, store=store, host_memory=32 * MiB, rules=Rules(f"fit:{size}"), routes=routes)


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
    whole = pack(folder, store=store, host_memory=32 * MiB).manifest.total_bytes
    wanted, errors = [], []
    with penstock.load(folder, store=store, attn_implementation="eager") as original:
        wanted = original(IDS).logits.float()
    for size in (smallest, (2 * smallest + whole) // 3, (smallest + 2 * whole) // 3, whole):
        bundle = fitted(folder, store, size)
        assert size - 8 * PAGE < bundle.manifest.total_bytes <= size
        assert bundle.verify() == []
        with penstock.load(bundle.folder, attn_implementation="eager", host_memory="64MB") as model:
            errors.append((model(IDS).logits.float() - wanted).norm().item())
            assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 27)
        bundle.close()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 < errors[-2] < errors[0] / 3, "with room for all, all is as it is"


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
    assert penstock.Config().override(weights_format="fit:2GiB").rules == Rules("fit:2GiB")
    with pytest.raises(ConfigError, match="only format can have one"):
        penstock.Config().override(weights_experts="fit:2GiB")
