"""Whether torch itself computes, as it does where nobody has changed how."""

import torch


def nobody_watches() -> bool:
    """Return whether neither a mode of functions or of operations, nor a transform of torch.func, is on."""
    c = torch._C
    if c._len_torch_function_stack() or c._len_torch_dispatch_stack():
        return False
    return c._functorch.peek_interpreter_stack() is None
