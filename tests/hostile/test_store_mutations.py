"""Some mutated files of each kind: equal results or one clear error, and nothing else. The mutations themselves too."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.runtime.config.config import Config
from penstock.runtime.prefixes.prefill import prefill
from penstock.runtime.routing.routed import RoutedLayer
from penstock.runtime.routing.routes import Routes
from penstock.runtime.tracing.run_recording import recorded
from penstock.tiering.errors import ConfigError, PenstockError, RecordingError, TraceError
from penstock.tiering.sim.recording import first_difference
from penstock.tiering.store.prefixes import prefix_notes
from tests.hostile.store_mutations import (
    PrefixParts,
    mutate_prefix_file,
    mutate_recording,
    mutate_small_file,
    mutate_trace,
)
from tests.support.prefixed_models import BLOCK, fresh, model_of, prefixes_of, saved, tokens
from tests.support.worlds.runs import random_run
from tests.tiering.sim.test_recording import recorded as run_recorded

PROMPT = tokens(110)
CASES = 25


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, torch.Tensor]:
    """A model, a store with a prompt of it, and the logits of a cold run."""
    model, folder = model_of(request.param), tmp_path_factory.mktemp("store")
    with prefixes_of(model, folder) as prefixes:
        saved(model, prefixes, PROMPT[:96])
    return model, folder, prefill(model, PROMPT, fresh(model), block=BLOCK)


def test_a_prefix_file_that_is_put_together_again_is_the_same(
    stored: tuple[Any, Path, torch.Tensor], tmp_path: Path
) -> None:
    (path,) = stored[1].rglob("*.kv")
    PrefixParts.read(path).write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seed", range(CASES))
def test_mutated_prefix_files(stored: tuple[Any, Path, torch.Tensor], tmp_path: Path, seed: int) -> None:
    model, folder, cold = stored
    rng = random.Random(seed)
    shutil.copytree(folder, tmp_path / "store")
    (path,) = (tmp_path / "store").rglob("*.kv")
    path.with_name(prefix_notes.INDEX).unlink()
    done = mutate_prefix_file(rng, path)
    with prefixes_of(model, tmp_path / "store") as prefixes:
        cache = fresh(model)
        prefixes.restore(PROMPT, cache)
        assert torch.equal(prefill(model, PROMPT, cache, block=BLOCK), cold), done
        prefixes.store.verify()
        prefixes.store.prune(everything=True)


def write_routes(path: Path) -> None:
    chance = np.random.default_rng(0)
    layers = tuple(
        RoutedLayer(
            f"m.{number}",
            experts,
            np.stack([chance.permutation(experts)[:2] for _ in range(20)]).astype(np.uint8),
            chance.integers(0, 255, (20, experts)).astype(np.uint8) if number else None,
        )
        for number, experts in enumerate((8, 8, 16))
    )
    Routes("moe", "t.txt", layers, (12, *[1] * 8), (20,)).save(path)


def read_routes(path: Path) -> None:
    routes = Routes.load(path)
    list(routes.steps())
    routes.uses_digest()


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., str], Callable[..., Any], type[PenstockError]]] = {
    "routes.safetensors": (write_routes, mutate_trace, read_routes, TraceError),
    "run.penrec": (
        lambda path: path.write_text(run_recorded(random_run(3)).text()),
        mutate_recording,
        lambda path: first_difference(recorded(path)),
        RecordingError,
    ),
    "penstock.toml": (
        lambda path: path.write_text(Config().to_toml()),
        mutate_small_file,
        lambda path: Config.load(path).to_toml(),
        ConfigError,
    ),
}


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_that_must_be_read(tmp_path: Path, name: str, seed: int) -> None:
    write, mutate, read, kind = KINDS[name]
    write(tmp_path / name)
    done = mutate(random.Random(seed), tmp_path / name)
    try:
        read(tmp_path / name)
    except kind as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said, done
    assert len(said) < 600, done


def test_the_same_chance_does_the_same(tmp_path: Path) -> None:
    said = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "notes.json"
        path.write_text(json.dumps({"files": [{"a": 1, "b": [1, 2, "x"]}], "checksum": ""}))
        said.append([mutate_small_file(random.Random(7), path), path.read_bytes() if path.is_file() else b""])
    assert said[0] == said[1]
