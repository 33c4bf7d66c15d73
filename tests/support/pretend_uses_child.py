"""What is done with models on a device that is not the CPU; print what came of it. ``pretend_uses_child.py FOLDER
NAME ...``, of models or of uses of them."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.cli import bench
from penstock.runtime.evaluation import evaluation
from penstock.runtime.evaluation.calibrate import calibrate
from penstock.runtime.evaluation.logits import KeptLogits
from penstock.runtime.loading import load as loading
from penstock.runtime.loading.openings import device as opening
from penstock.runtime.prefixes import prefix
from penstock.runtime.prefixes.identity import settings, tensors
from penstock.runtime.routing.profiling import profile

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.pretend import DEVICE, Pretend, PretendDevice
from tests.support.pretend_child import OPTIONS, built_by_transformers, with_buffers
from tests.support.tiny_models import save_tiny

EAGER = OPTIONS | {"experts_implementation": "eager"}
WINDOWS = [[*range(3, 40)], [*range(50, 72)]]
IDS = torch.randint(3, 300, (2, 150), generator=torch.Generator().manual_seed(1))
KV = "128KiB"
"""Of which contexts in pages take several times as much."""


class Uses:
    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.store = folder / name, folder / "store"
        with _disable_current_modes():
            save_tiny(name, self.folder, torch.bfloat16)
            self.reference = with_buffers(AutoModelForCausalLM.from_pretrained(self.folder, **EAGER).eval())
        self.reference.to(DEVICE)

    def loaded(self, **options: Any) -> Any:
        where = {"store": self.store, "device": "cuda", "device_memory": "64MiB", "host_memory": "64MiB"}
        return penstock.load(self.folder, **OPTIONS, **where | options)

    def eval(self) -> dict[str, Any]:
        tokens = evaluation.predicted(WINDOWS)
        with self.loaded() as model, KeptLogits(self.store, tokens) as kept:
            expected = evaluation.evaluate(self.reference, WINDOWS).quality
            found = evaluation.evaluate(model, WINDOWS, keep=kept).quality
            again = evaluation.evaluate(model, WINDOWS, against=kept).quality
        return {"same": found == again == expected, "tokens": found.tokens}

    def calibrate(self) -> dict[str, Any]:
        with self.loaded() as model:
            found = calibrate(model, WINDOWS)
        with self.loaded(device="cpu", device_memory="auto") as model, _disable_current_modes():
            expected = calibrate(model, WINDOWS)
        near = [torch.allclose(found.importance[key], each) for key, each in expected.importance.items()]
        shares = [abs(found.shares[block] / each - 1) < 1e-4 for block, each in expected.shares.items()]
        return {"same": all(near) and all(shares), "matrices": len(near), "shares": len(shares)}

    def profile(self) -> dict[str, Any]:
        with self.loaded() as model:
            return {"tokens": profile(model, WINDOWS[0], window=20).forwards}

    def bench(self) -> dict[str, Any]:
        with self.loaded() as model:
            return {"tokens": bench._measure(model, 8, 3, None)["tokens"]}

    def prefix(self, **options: Any) -> dict[str, Any]:
        """Of a prompt that is computed twice, and restored then."""
        found = []
        prefix.worth_reading = lambda *_, **__: True  # type: ignore[assignment]
        with self.loaded(kv_prefix="16MiB", **options) as model:
            for _ in range(3):
                greedy = {"max_new_tokens": 3, "do_sample": False}
                how = {"return_dict_in_generate": True, "output_logits": True}
                found.append(torch.cat(model.generate(IDS[:1].to(DEVICE), **greedy, **how).logits).cpu())
                model.penstock.prefixes.flush()
            stats = model.penstock.stats()
        same = torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        return {"same": same, "restored": stats.prefix_tokens_restored, "problem": stats.prefix_problem}

    def prefix_paged(self) -> dict[str, Any]:
        return self.prefix(kv_host_memory=KV)


def no_gradients(mode: bool = True) -> AbstractContextManager[None]:
    """In place of inference mode, which has no place for tensors of other kinds."""
    return torch.no_grad() if mode else nullcontext()


def main() -> None:
    folder, *wanted = sys.argv[1:]
    opening.Cuda, loading.bare_model = PretendDevice, built_by_transformers  # type: ignore[misc]
    evaluation.PIECE = 10 * 320 * 2  # ten rows of logits
    no_gradients.__module__ = "torch"  # stored prompts look who replaced functions of torch
    torch.inference_mode = no_gradients  # type: ignore[misc, assignment]
    # A real device has no mode, and its tensors are not made of others.
    tensors._has_storage, settings._check_modes = (lambda _: True), (lambda: None)
    with torch.no_grad(), Pretend():
        for one in wanted:
            name, *uses = one.split(":")
            of_model = Uses(Path(folder), name)
            for use in uses:
                what: Callable[[], dict[str, Any]] = getattr(of_model, use)
                print(json.dumps({"name": f"{name}:{use}"} | what()), flush=True)


if __name__ == "__main__":
    main()
