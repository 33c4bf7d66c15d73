"""Whether a refusal leaves an adapter in a part of a model: PEFT changes modules in turn, and takes nothing back."""

import sys
from typing import Any


def half_added_adapter() -> str:
    """The name of the adapter that this thread is adding to a model by PEFT, if some of its modules have it by now;
    else nothing."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "inject_adapter" and frame.f_globals.get("__name__", "").startswith("peft."):
            model, adapter = (frame.f_locals.get(name) for name in ("model", "adapter_name"))
            if model is not None and any(_has(module, adapter) for module in model.modules()):
                return str(adapter)
    return ""


def _has(module: Any, adapter: Any) -> bool:
    """Whether ``module`` is one of PEFT's, with a part of ``adapter``."""
    return any(adapter in getattr(module, part, ()) for part in getattr(module, "adapter_layer_names", ()))
