"""What lies in the store and beside it: stored prompts, caches, notes, configuration, traces, recordings."""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock.runtime.prefixes import prefix
from penstock.runtime.routing.routes import Routes
from penstock.runtime.tracing.run_recording import recorded
from penstock.tiering.sim.recording import first_difference
from tests.hostile.kind import Result, close
from tests.hostile.store_mutations import mutate_prefix_file, mutate_recording, mutate_small_file, mutate_trace
from tests.support.tiny_models import save_tiny

PROMPT = torch.randint(3, 300, (1, 150), generator=torch.Generator().manual_seed(2))
SETTINGS = '[memory]\nhost = "64MiB"\n\n[io]\nbackend = "threads"\ndepth = 4\n'


def _answer(folder: Path, **options: Any) -> Result:
    """What the model in ``folder`` says to PROMPT, with its logits, under the settings there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "worth_reading", lambda *_, **__: True)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        given: dict[str, Any] = {"store": folder / "store", "attn_implementation": "eager", "kv_prefix": "64MiB"}
        with penstock.load(folder / "checkpoint", folder / "penstock.toml", **given | options) as model:
            told = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
            out = model.generate(PROMPT, **told, output_logits=True, return_dict_in_generate=True)
            return [out.sequences, *out.logits]


@dataclass(frozen=True)
class StoreKind:
    """Files of the store of a model of type ``model``: stored prompts, or, if they are ``small``, all the others."""

    model: str
    small: bool = False
    paged: bool = False
    """Whether keys and values are in pages."""

    def make(self, folder: Path) -> None:
        """As Kind."""
        save_tiny(self.model, folder / "checkpoint", attn_implementation="eager")
        (folder / "penstock.toml").write_text(SETTINGS)
        for _ in range(2):  # a prompt is stored when it comes again
            _answer(folder, **self._options)

    def mutate(self, rng: random.Random, folder: Path) -> str:
        """As Kind."""
        if not self.small:
            return mutate_prefix_file(rng, rng.choice(sorted((folder / "store").rglob("*.kv"))))
        kept = [folder / "penstock.toml", *(folder / "cache").rglob("*"), *(folder / "store").rglob("*")]
        skipped = (".kv", ".bin", ".lock")
        files = [path for path in kept if path.is_file() and path.suffix not in skipped and "model" not in path.parts]
        path = rng.choice(sorted(path for path in files if path.name != "manifest.json"))
        return f"{path.relative_to(folder)}: {mutate_small_file(rng, path)}"

    def use(self, folder: Path, way: int) -> Result:
        """As Kind."""
        return _answer(folder, **self._options)

    def is_right(self, folder: Path, result: Result, way: int) -> bool:
        """As Kind: a prompt that is computed has the numbers of one that was stored, up to the order of sums."""
        fresh = folder / "fresh"
        shutil.copytree(folder / "checkpoint", fresh / "checkpoint")
        (fresh / "penstock.toml").write_text(SETTINGS)
        return close(result, _answer(fresh, **self._options))

    @property
    def _options(self) -> dict[str, Any]:
        return {"kv_host_memory": "256KiB"} if self.paged else {}


@dataclass(frozen=True)
class RunKind:
    """What a run leaves for later: its routing, or its recording."""

    recording: bool

    def make(self, folder: Path) -> None:
        """As Kind."""
        checkpoint = save_tiny("qwen3_moe", folder / "checkpoint")
        options = {"record": folder / "run.penrec"} if self.recording else {}
        with penstock.load(checkpoint, store=folder / "store", host_memory="150KiB", **options) as model:
            if not self.recording:
                with model.penstock.profile("text") as routing:
                    model(PROMPT)
                routing.routes().save(folder / "routes.safetensors")
            else:
                model(PROMPT[:, :20])

    def mutate(self, rng: random.Random, folder: Path) -> str:
        """As Kind."""
        if self.recording:
            return mutate_recording(rng, folder / "run.penrec")
        return mutate_trace(rng, folder / "routes.safetensors")

    def use(self, folder: Path, way: int) -> Result:
        """As Kind."""
        if self.recording:
            return [torch.tensor(first_difference(recorded(folder / "run.penrec")) is None)]
        routes = Routes.load(folder / "routes.safetensors")
        return [torch.tensor(sum(len(layer) for step in routes.steps() for layer in step))]

    def is_right(self, folder: Path, result: Result, way: int) -> bool:
        """As Kind: what is read without an error is another run's."""
        return True
