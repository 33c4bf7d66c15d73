"""Keeps torch.compile away from forwards that lease weights: a compiled graph would keep what it saw of them."""

from collections.abc import Callable
from typing import Any

from torch._C._dynamo import eval_frame

_REASON = "penstock leases the weights of this module while it runs; torch.compile leaves it as it is"
_SKIPPED = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)


def keep_uncompiled(forward: Callable[..., Any]) -> None:
    """Have torch.compile run ``forward``, a function, and all that it calls as without."""
    # What torch.compiler.disable notes on a function. To call that takes seconds, for it imports the compiler.
    marks = {"_torchdynamo_disable": True, "_torchdynamo_disable_msg": _REASON, "_torchdynamo_disable_recursive": True}
    vars(forward).update(marks)
    eval_frame.set_code_exec_strategy(forward.__code__, _SKIPPED)
