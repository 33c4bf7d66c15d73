"""Run models on a device that is not the CPU; print what came of it. ``pretend_child.py FOLDER NAME ...``"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.loading import load as loading
from penstock.runtime.loading.openings import device as opening
from penstock.runtime.loading.placeholder_model import bare_model

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.engines import engine_of
from tests.support.pretend import DEVICE, Pretend, PretendDevice
from tests.support.tiny_models import save_tiny

IDS = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, Any] = {"attn_implementation": "eager"}


def logits(model: Any, steps: int = 3) -> list[torch.Tensor]:
    """Of a prompt of two rows, of tokens one by one, and of one row alone."""
    ids = IDS.to(DEVICE)
    out = model(ids, use_cache=True)
    found = [out.logits]
    for step in range(steps):
        out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits)
    found.append(model(ids[:1, :1]).logits)
    return [each.cpu() for each in found]


def least(folder: Path, **options: Any) -> int:
    """The least of the one budget that is 1 in ``options``."""
    try:
        penstock.load(folder, **OPTIONS, **options).penstock.close()
    except penstock.BudgetTooSmall as error:
        return int(re.search(r"at least (\d+)", str(error))[1])
    return 1


def misplaced(model: Any) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if tensor.device != DEVICE]


def compared(folder: Path, store: Path, misses: str) -> dict[str, Any]:
    with _disable_current_modes():
        options = OPTIONS | {"experts_implementation": "eager"}
        reference = with_buffers(AutoModelForCausalLM.from_pretrained(folder, **options).eval())
    reference.to(DEVICE)
    expected = logits(reference)
    written = reference.generate(IDS[:1].to(DEVICE), max_new_tokens=5, do_sample=False).tolist()
    where = {"store": store, "device": "cuda", "experts_misses": misses}
    small = least(folder, device_memory=1, host_memory="1GiB", **where)
    host = least(folder, device_memory=small, host_memory=1, **where)
    found: dict[str, Any] = {"equal": True, "misplaced": []}
    for device_memory, host_memory in ((small, host), (small, "1GiB"), ("1GiB", "1GiB")):
        with penstock.load(folder, device_memory=device_memory, host_memory=host_memory, **OPTIONS, **where) as model:
            same = all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
            same &= model.generate(IDS[:1].to(DEVICE), max_new_tokens=5, do_sample=False).tolist() == written
            engine_of(model).check_integrity()
            engine_of(model).host.check_integrity()
            found["equal"] &= same
            found["misplaced"] += [str(model.device), *misplaced(model)] if model.device != DEVICE else misplaced(model)
            found["stays"] = model.to(DEVICE) is model.to("pretend") is model
            try:
                model.to("cpu")
                found["stays"] = False
            except penstock.ConfigError:
                pass
            stats = model.penstock.stats()
            if device_memory == small:
                found["copied"] = found.get("copied", 0) + stats.expert_misses - stats.misses_computed
                found["computed"] = found.get("computed", 0) + stats.misses_computed
                found["by_row"] = len(model.penstock.device_placement.by_row)
        found["misplaced"] += misplaced(model)
    return found


def built_by_transformers(*args: Any) -> Any:
    """``bare_model`` without Pretend."""
    with _disable_current_modes():
        return with_buffers(bare_model(*args))


def with_buffers(model: Any) -> Any:
    """``model`` with buffers as they are when it is built from its configuration: beside a backend in Python,
    ``from_pretrained`` leaves them as they come."""
    fresh = AutoModelForCausalLM.from_config(model.config)
    for name, buffer in model.named_buffers():
        if name not in model.state_dict():
            buffer.copy_(fresh.get_buffer(name))
    return model


def main() -> None:
    folder, misses, dtype, *names = sys.argv[1:]
    opening.Cuda, loading.bare_model = PretendDevice, built_by_transformers  # type: ignore[misc]
    with torch.no_grad(), Pretend():
        for name in names:
            model = Path(folder) / f"{name}-{dtype}"
            with _disable_current_modes():
                save_tiny(name, model, getattr(torch, dtype))
            print(json.dumps({"name": name} | compared(model, Path(folder) / "store", misses)), flush=True)


if __name__ == "__main__":
    main()
