"""Changes to checkpoints: each is one, and what is read of the result is right or one CheckpointError."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.runtime.packing.pack import pack
from penstock.tiering.errors import PenstockError
from tests.hostile.checkpoint_mutations import mutate_gguf, mutate_json, mutate_quantised, mutate_safetensors
from tests.support.gguf_files import write
from tests.support.quantised_checkpoints import gptq, save_pair
from tests.support.tiny_models import save_tiny

CASES = 30
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def gguf(folder: Path) -> Path:
    return write(folder / "model.gguf", "qwen3moe", lambda name: "q8_0")


def plain(folder: Path) -> Path:
    return save_tiny("qwen3_moe", folder / "model")


def quantised(folder: Path) -> Path:
    return save_pair(folder, "llama", GPTQ, gptq(32)).quantised


def in_weights(rng: random.Random, folder: Path) -> str:
    return mutate_safetensors(rng, folder / "model.safetensors")


def in_config(rng: random.Random, folder: Path) -> str:
    return mutate_json(rng, folder / "config.json")


@pytest.mark.parametrize(
    ("make", "mutate"),
    [(gguf, mutate_gguf), (plain, in_weights), (plain, in_config), (quantised, mutate_quantised)],
)
def test_what_a_stranger_changes_is_read_or_refused(
    make: Callable[[Path], Path], mutate: Callable[[random.Random, Path], str], tmp_path: Path
) -> None:
    honest = make(tmp_path)
    case, said = tmp_path / "case", set()
    for seed in range(CASES):
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        copy = case / honest.name
        (shutil.copytree if honest.is_dir() else shutil.copyfile)(honest, copy)
        what = mutate(random.Random(seed), copy)
        said.add(what)
        try:
            pack(copy, store=case / "store").close()
        except PenstockError as error:
            assert "\n" not in str(error).strip() or "transformers" in str(error), what  # noqa: PT017
    assert len(said) > CASES // 2


def test_a_seed_makes_the_same_change_again(tmp_path: Path) -> None:
    honest = gguf(tmp_path)
    copies = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for copy in copies:
        shutil.copyfile(honest, copy)
    one, other = (mutate_gguf(random.Random(7), copy) for copy in copies)
    assert one == other
    assert copies[0].read_bytes() == copies[1].read_bytes() != honest.read_bytes()
