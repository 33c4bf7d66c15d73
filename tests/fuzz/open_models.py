"""Opens the two models of a case."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import penstock
from tests.support.encoded_models import decoded

from .case import Case
from .checkpoints.write import Written
from .settings import LOSSY

ENOUGH = 1 << 30
_LEAST = re.compile(r"set (host|device)_memory to at least (\d+) bytes")


def transformers_opening(case: Case, written: Written, attention: str) -> Callable[[], Any]:
    """Opens transformers' own model; with the numbers that a lossy format means."""

    def open_model() -> Any:
        model = case.model.auto_class.from_pretrained(
            written.plain, attn_implementation=attention, experts_implementation="eager", trust_remote_code=True
        ).eval()
        return decoded(model, _full_name(case.settings.format)) if case.settings.format in LOSSY else model

    return open_model


def penstock_opening(case: Case, written: Written, attention: str, store: Path) -> Callable[[], Any]:
    """Opens Penstock's model, within the budget of the case."""
    settings = case.settings
    total = sum(file.stat().st_size for file in written.plain.glob("*.safetensors"))
    budget = partial(_within, settings.budget, total, settings.kv_bytes, on_device=settings.device != "cpu")
    options = settings.options | {"store": store}
    if settings.device != "cpu":
        options["device"] = settings.device
    load = partial(penstock.load, written.checkpoint, attn_implementation=attention, trust_remote_code=True, **options)

    def from_bundle() -> Any:
        with load(host_memory=ENOUGH, **({"device_memory": ENOUGH} if "device" in options else {})) as model:
            bundle = model.penstock.bundle
        return budget(partial(penstock.load, bundle, attn_implementation=attention, trust_remote_code=True, **options))

    def wrapped() -> Any:
        return budget(partial(penstock.wrap, transformers_opening(_plain(case), written, attention)(), **options))

    def wrapped_before() -> Any:
        with penstock.wrap(transformers_opening(_plain(case), written, attention)(), **options) as model:
            bundle = model.penstock.bundle
        return budget(partial(penstock.load, bundle, attn_implementation=attention, **options))

    if case.model.head != "causal":
        return wrapped_before if settings.opened == "bundle" else wrapped
    return {"load": lambda: budget(load), "bundle": from_bundle, "wrap": wrapped}[settings.opened]


def _within(budget: str, total: int, kv: int, load: Callable[..., Any], *, on_device: bool) -> Any:
    """Load within ``budget``: a share of ``total`` bytes for each tier, the least, or what ``load`` takes by itself.
    ``kv`` bytes are for keys and values."""
    tiers = ("device_memory", "host_memory") if on_device else ("host_memory",)
    if budget == "default":
        return load(**({"device_memory": ENOUGH} if on_device else {}))
    share = 0.0 if budget == "least" else float(budget)
    memory = dict.fromkeys(tiers, max(1, int(share * total)))
    for _ in range(6):
        try:
            return load(**memory)
        except penstock.BudgetTooSmall as refused:
            found = _LEAST.search(str(refused))
            if found is None:
                raise
            # What keys and values take comes on top of what the error names.
            memory[f"{found[1]}_memory"] = int(found[2]) + (kv if found[1] == "host" else 0)
    raise RuntimeError(f"no budget is enough: {memory}")


def _plain(case: Case) -> Case:
    """The case with weights as they are: what is wrapped is not encoded yet."""
    return Case(case.model, type(case.settings)(), ())


def _full_name(format_: str) -> str:
    return {"int4": "int4-32"}.get(format_, format_)
