"""Whether threads spin while they wait for work: wait_policy.c has the reason and the way."""

from ..native import COMPILED


def wait_passively(passive: bool) -> bool:
    """Have the threads of OpenMP sleep at once where they wait, or spin as before. Returns whether they sleep now.

    They go on spinning where the kernels were compiled without GCC's OpenMP. One thread at a time may call this.
    """
    return COMPILED is not None and bool(COMPILED.penstock_wait_policy(int(passive)))
